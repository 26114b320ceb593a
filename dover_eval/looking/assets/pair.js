"use strict";
(() => {
  const { data, find, make } = dover;
  const videos = [0, 1].map((side) => find(`video-${side}`));
  const play = find("play");
  const start = () => {
    const on = play.getAttribute("aria-pressed") === "true";
    videos.forEach((video) => (on ? video.play().catch(() => {}) : video.pause()));
    play.textContent = on ? "Pause both" : "Play both";
  };
  const show = () => {
    videos.forEach((video, side) => {
      const time = video.currentTime;
      video.muted = true;
      video.src = dover.url(`${side} ${find("map").value}`, data.videos[side][find("map").value]);
      video.currentTime = time;
    });
    start();
  };
  find("map").addEventListener("change", show);
  play.addEventListener("click", () => { play.setAttribute("aria-pressed", String(play.getAttribute("aria-pressed") !== "true")); start(); });
  show();

  data.names.forEach((name, i) => find("by").append(make("option", { value: i, selected: name === "Overall" }, name)));
  const curves = () => {
    const column = Number(find("by").value);
    const rows = [0, 1].flatMap((side) => data.times[side].map((time, i) => ({ clip: "AB"[side], time, value: data.values[side][column][i] })));
    dover.redraw = [];
    dover.plot(find("curves"), (c) => ({
      width: "container", height: 330, autosize: { type: "fit", contains: "padding" }, data: { values: rows },
      mark: { type: "line", strokeWidth: 2.6, point: { size: 40 }, tooltip: true },
      encoding: {
        x: { field: "time", type: "quantitative", title: "seconds", axis: { grid: false } },
        y: { field: "value", type: "quantitative", title: data.names[column], scale: { domain: [1, 5], nice: false }, axis: { values: [1, 2, 3, 4, 5], format: "d", ticks: false, domain: false } },
        color: { field: "clip", type: "nominal", scale: { domain: ["A", "B"], range: [c.warm, c.accent] }, legend: { orient: "top", title: null } },
        strokeDash: { field: "clip", type: "nominal", scale: { domain: ["A", "B"], range: [[6, 3], [1, 0]] }, legend: { orient: "top", title: null } },
      },
    }), { tooltip: (d) => [`${d.clip} ${dover.fixed(d.value)}`, `at ${dover.fixed(d.time)} s`] });
  };
  find("by").addEventListener("change", curves);
  curves();
})();
