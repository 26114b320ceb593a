"use strict";
(() => {
  const { data, find, make } = dover;
  const overall = data.names.indexOf("Overall");
  const [a, b] = data.scores;
  const gain = (column, i) => b[column][i] - a[column][i];
  const tone = (value) => (value > 0 ? "better" : value < 0 ? "worse" : "");

  /* Differences */
  dover.plot(find("forest"), (c) => {
    const colour = { condition: [{ test: "datum.shown && datum.mean > 0", value: c.accent }, { test: "datum.shown && datum.mean < 0", value: c.warm }], value: c.muted };
    const y = { field: "name", type: "nominal", sort: data.names, title: null, axis: { ticks: false, domain: false, labelFontSize: 13, labelColor: c.ink } };
    return {
      width: "container", height: 170, data: { values: data.differences }, autosize: { type: "fit-x", contains: "padding" },
      encoding: { y },
      layer: [
        { mark: { type: "rule", color: c.ink, strokeDash: [3, 3] }, encoding: { x: { datum: 0 }, y: null } },
        { mark: { type: "rule", strokeWidth: 3, strokeCap: "round" }, encoding: { x: { field: "low", type: "quantitative", title: "B − A", axis: { format: "+.2f", tickCount: 7 } }, x2: { field: "high" }, color: colour } },
        { mark: { type: "circle", size: 130, opacity: 1, tooltip: true }, encoding: { x: { field: "mean", type: "quantitative" }, color: colour } },
      ],
    };
  }, { tooltip: (d) => (d.name ? [d.name, `${dover.signed(d.mean, 3)}, ${dover.signed(d.low, 3)} to ${dover.signed(d.high, 3)}`] : ["no difference"]) });

  /* Side by side */
  const half = (side, i, column) => dover.screen(`${side} ${i}`, data.previews[side][i], {
    name: `${"AB"[side]}, ${dover.base(data.videos[side][i])}`, badge: dover.fixed(data.previews[side][i].scores[column]), side: "AB"[side] });
  const several = (i) => data.clips.some((side) => side[i] > 1);
  const pairs = () => {
    const column = Number(find("by").value);
    find("play-all").setAttribute("aria-pressed", "false");
    find("play-all").textContent = "Play all";
    find("pairs").replaceChildren(...data.largest[column].map((i) => {
      const change = gain(column, i);
      const others = data.names.filter((_, k) => k !== column).map((name) => `${name} ${dover.signed(gain(data.names.indexOf(name), i))}`).join(", ");
      return make("li", { class: "card pair" }, make("div", { class: "two" }, half(0, i, column), half(1, i, column)),
        make("div", { class: "about" }, dover.prompt(data.prompts[i]),
          make("div", {}, make("span", { class: tone(change) }, `${data.names[column]} ${dover.signed(change)}`), make("span", { class: "muted" }, `  ${others}`)),
          several(i) ? make("div", { class: "muted" }, `Of ${data.clips[0][i]} (A) and ${data.clips[1][i]} (B) clips those nearest to their means, which are ${dover.fixed(a[column][i])} and ${dover.fixed(b[column][i])}`) : null));
    }));
    if (!data.largest[column].length) find("pairs").append(make("li", { class: "muted" }, "No prompt differs in this score."));
  };
  data.names.forEach((name, i) => find("by").append(make("option", { value: i, selected: i === overall }, name)));
  find("by").addEventListener("change", pairs);
  dover.playAll(find("play-all"), find("most"));
  pairs();

  /* Prompts */
  const table = dover.table(find("table"), {
    count: data.prompts.length, caption: "Prompts and how their scores differ", start: { column: 1 + overall, down: false },
    columns: [
      { label: "Prompt and clips", wide: true, value: (i) => data.prompts[i],
        cell: (i) => make("div", {}, dover.prompt(data.prompts[i], "name"),
          make("div", { class: "prompt" }, [0, 1].map((side) => dover.base(data.videos[side][i]) + (data.clips[side][i] > 1 ? ` and ${data.clips[side][i] - 1} more` : "")).join(" · "))) },
      ...data.names.map((name, column) => ({
        label: name, right: true, class: "score number", value: (i) => gain(column, i),
        cell: (i) => make("span", {}, make("span", { class: tone(gain(column, i)) }, dover.signed(gain(column, i))),
          make("span", { class: "muted" }, ` ${dover.fixed(a[column][i])}→${dover.fixed(b[column][i])}`)),
      })),
    ],
    onchange: (state) => { find("sort").value = `${state.column} ${state.down}`; },
  });
  for (const [label, column] of [["Prompt", 0], ...data.names.map((name, i) => [name, 1 + i])]) {
    const ways = column ? [["worst for B first", false], ["best for B first", true]] : [["rising", false], ["falling", true]];
    for (const [way, down] of ways) find("sort").append(make("option", { value: `${column} ${down}` }, `${label}, ${way}`));
  }
  find("sort").value = `${1 + overall} false`;
  find("sort").addEventListener("change", () => {
    const [column, down] = find("sort").value.split(" ");
    table.sort(Number(column), down === "true");
  });
  const haystack = data.prompts.map((prompt, i) => `${prompt}\n${data.videos[0][i]}\n${data.videos[1][i]}`.toLowerCase());
  const filter = () => {
    const words = find("words").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    table.filter((i) => words.every((word) => haystack[i].includes(word)));
  };
  let waiting;
  find("words").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  find("filter").addEventListener("submit", (event) => { event.preventDefault(); filter(); });
  find("filter").addEventListener("reset", () => setTimeout(() => { find("sort").value = `${table.state.column} ${table.state.down}`; filter(); }));
})();
