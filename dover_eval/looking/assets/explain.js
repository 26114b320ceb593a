"use strict";
(() => {
  const { data, find } = dover;
  const original = find("original");
  const coloured = find("coloured");

  /* Two players, one clock: the one with controls leads. */
  original.muted = coloured.muted = true;
  original.src = dover.url("original", data.videos.original);
  // The default as well: a new source starts at that.
  const keepPace = () => { coloured.defaultPlaybackRate = coloured.playbackRate = original.playbackRate; };
  const colour = () => {
    coloured.src = dover.url(find("map").value, data.videos[find("map").value]);
    coloured.currentTime = original.currentTime;
    keepPace();
    if (!original.paused) coloured.play().catch(() => {});
    document.querySelectorAll("[data-map]").forEach((legend) => { legend.hidden = legend.dataset.map !== find("map").value; });
  };
  find("map").addEventListener("change", colour);
  colour();
  const follow = (apart = 0.04) => { if (Math.abs(coloured.currentTime - original.currentTime) > apart) coloured.currentTime = original.currentTime; };
  original.addEventListener("play", () => { follow(); coloured.play().catch(() => {}); });
  original.addEventListener("pause", () => { coloured.pause(); follow(); });
  original.addEventListener("seeked", () => follow());
  original.addEventListener("timeupdate", () => { if (!original.paused) follow(0.15); }); // a jump stutters: not for less
  original.addEventListener("ratechange", keepPace);

  const go = (time) => {
    original.pause();
    original.currentTime = time;
    find("places").scrollIntoView();
  };
  document.querySelectorAll(".go").forEach((button) => button.addEventListener("click", () => go(Number(button.dataset.time))));

  /* Curves. Tol's bright colours, with dashes and marks for who sees none of them. */
  const rows = data.names.flatMap((name, k) => data.times.map((time, i) => (
    { name, time, value: data.values[k][i], lowest: data.worst[k] === i })));
  let view = null;
  dover.plot(find("curves"), (c) => {
    const light = !dover.dark.matches;
    const range = light ? ["#2b7bba", "#c2410c", "#5b7c12", "#aa3377", "#1a1c20"] : ["#66ccee", "#ee8866", "#bbcc33", "#ee99cc", "#ebe9e4"];
    const x = { field: "time", type: "quantitative", title: "seconds", scale: { domain: [0, data.duration], nice: false }, axis: { grid: false } };
    const y = { field: "value", type: "quantitative", title: null, scale: { domain: [1, 5], nice: false }, axis: { values: [1, 2, 3, 4, 5], format: "d", ticks: false, domain: false } };
    const legend = { orient: "top", title: null, columns: { signal: "max(1, floor(width / 115))" } }; // five do not fit on a phone
    const color = { field: "name", type: "nominal", scale: { domain: data.names, range }, legend: { ...legend, symbolType: "stroke", symbolSize: 400 } };
    return {
      width: "container", height: 330, autosize: { type: "fit", contains: "padding" }, data: { values: rows },
      layer: [
        { mark: { type: "line", interpolate: "monotone" }, encoding: { x, y, color,
          strokeDash: { field: "name", type: "nominal", scale: { domain: data.names, range: [[1, 0], [7, 3], [2, 3], [9, 3, 2, 3], [1, 0]] }, legend },
          strokeWidth: { condition: { test: "datum.name === 'Overall'", value: 3.2 }, value: 2 } } },
        { mark: { type: "circle", size: 70, opacity: 0.001, tooltip: true, cursor: "pointer" }, encoding: { x, y } },
        { transform: [{ filter: "datum.lowest" }], mark: { type: "point", size: 110, strokeWidth: 2, filled: false, tooltip: true, cursor: "pointer" }, encoding: { x, y, color } },
        { data: { name: "now", values: [{ now: original.currentTime }] }, mark: { type: "rule", color: c.muted, strokeDash: [2, 3] }, encoding: { x: { field: "now", type: "quantitative" } } },
      ],
    };
  }, {
    tooltip: (d) => (d.name ? [`${d.name} ${dover.fixed(d.value)}`, `at ${dover.fixed(d.time)} s`] : [`${dover.fixed(d.now)} s`]),
    ready: (made) => {
      view = made;
      view.addEventListener("click", (event, item) => { if (item?.datum?.time !== undefined) go(item.datum.time); });
    },
  });
  original.addEventListener("timeupdate", () => { if (view) view.data("now", [{ now: original.currentTime }]).runAsync(); });
})();
