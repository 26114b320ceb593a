"use strict";
(() => {
  const { data, find, make } = dover;
  const overall = data.names.indexOf("Overall");
  const count = data.videos.length;
  const prompt = (i) => data.prompts[data.prompt[i]];
  const error = (i) => data.errors[i] ?? null;
  const scores = (i) => data.scores.map((column) => column[i]);
  const options = (select, labels, chosen) => labels.forEach((label, i) =>
    select.append(make("option", { value: i, selected: i === chosen }, label)));

  /* Scores */
  data.names.forEach((name, column) => {
    const node = find(`plot-${column}`);
    if (!node) return;
    const bins = data.summary[column].counts.map((clips, i) => ({ from: data.edges[i], to: data.edges[i + 1], clips }));
    dover.plot(node, (c) => ({
      width: "container", height: 74, padding: 0, data: { values: bins }, autosize: { type: "fit-x", contains: "padding" },
      mark: { type: "bar", binSpacing: 1, color: name === "Overall" ? c.accent : c.quiet, tooltip: true },
      encoding: {
        x: { field: "from", type: "quantitative", bin: { binned: true }, title: null, scale: { domain: [1, 5], nice: false },
          axis: { values: [1, 2, 3, 4, 5], format: "d", grid: false, ticks: false, domain: true } },
        x2: { field: "to" },
        y: { field: "clips", type: "quantitative", axis: null, stack: null },
      },
    }), { tooltip: (d) => [`${d.clips.toLocaleString("en")} clip${d.clips === 1 ? "" : "s"}`, `${name} ${dover.fixed(d.from)} to ${dover.fixed(d.to)}`] });
  });

  /* Worst and best */
  const reels = () => {
    const column = Number(find("by").value);
    find("play-all").setAttribute("aria-pressed", "false");
    find("play-all").textContent = "Play all";
    find("best").parentElement.hidden = !data.extremes[column][1].length; // of one clip
    data.extremes[column].forEach((rows, end) => find(end ? "best" : "worst").replaceChildren(...rows.map((i) =>
      make("li", { class: "card clip" },
        dover.screen(i, data.previews[i], { name: dover.base(data.videos[i]), badge: dover.fixed(data.scores[column][i]) }),
        make("div", { class: "about" },
          make("div", { class: "name", title: data.videos[i] }, dover.base(data.videos[i])),
          dover.prompt(prompt(i)),
          dover.bars(scores(i), column))))));
  };
  if (find("by")) {
    options(find("by"), data.names, overall);
    find("by").addEventListener("change", reels);
    dover.playAll(find("play-all"), find("extremes"));
    reels();
  }

  /* Ranking */
  const places = new Array(count).fill(null);
  [...places.keys()].filter((i) => !error(i)).sort((a, b) => data.scores[overall][b] - data.scores[overall][a] || a - b)
    .forEach((i, place) => { places[i] = place + 1; });
  const haystack = data.videos.map((video, i) => `${video}\n${prompt(i)}\n${error(i) ?? ""}`.toLowerCase());
  const score = (name, column) => ({
    label: name, right: true, class: "score number", down: true,
    value: (i) => data.scores[column][i],
    cell: (i) => make("span", { class: `cell${column === overall ? " strong" : ""}` },
      make("span", { class: "track", "aria-hidden": "true" }, make("i", { style: { width: data.scores[column][i] === null ? "0" : dover.share(data.scores[column][i]) } })),
      make("span", {}, dover.fixed(data.scores[column][i]))),
  });
  const table = dover.table(find("table"), {
    count, caption: "Clips and their scores", start: { column: 2 + overall, down: true },
    columns: [
      { label: "Rank", right: true, class: "rank number", value: (i) => places[i], cell: (i) => (places[i] === null ? "–" : String(places[i])) },
      { label: "Clip and prompt", wide: true, value: (i) => data.videos[i],
        cell: (i) => make("div", {}, make("div", { class: "name" }, data.videos[i]), dover.prompt(prompt(i)),
          error(i) ? make("div", { class: "wrong" }, `Error: ${error(i)}`) : null) },
      ...data.names.map(score),
    ],
    onchange: (state) => { find("sort").value = `${state.column} ${state.down}`; },
  });
  const sortable = [["Rank", 0], ["Name", 1], ...data.names.map((name, i) => [name, 2 + i])];
  for (const [label, column] of sortable) {
    const ways = column > 1 ? [["best first", true], ["worst first", false]] : [["rising", false], ["falling", true]];
    for (const [way, down] of ways) find("sort").append(make("option", { value: `${column} ${down}` }, `${label}, ${way}`));
  }
  find("sort").value = `${2 + overall} true`;
  find("sort").addEventListener("change", () => {
    const [column, down] = find("sort").value.split(" ");
    table.sort(Number(column), down === "true");
  });

  options(find("score"), data.names, overall);
  let chosen = () => true;
  const choose = (keep) => {
    chosen = keep;
    table.filter(chosen);
    paint();
  };
  const filter = () => {
    const words = find("words").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const column = data.scores[Number(find("score").value)];
    const [from, to] = ["from", "to"].map((id) => (find(id).value === "" ? null : Number(find(id).value)));
    const show = find("show").value;
    choose((i) => words.every((word) => haystack[i].includes(word))
      && (from === null || (column[i] !== null && column[i] >= from)) && (to === null || (column[i] !== null && column[i] <= to))
      && (show === "all" || (show === "failed") === (error(i) !== null)));
  };
  const form = find("filter");
  let waiting;
  form.addEventListener("input", (event) => {
    if (event.target.id === "sort") return;
    clearTimeout(waiting);
    waiting = setTimeout(filter, 120);
  });
  form.addEventListener("submit", (event) => { event.preventDefault(); filter(); });
  form.addEventListener("reset", () => setTimeout(() => {
    find("score").value = String(overall);
    find("sort").value = `${table.state.column} ${table.state.down}`;
    filter();
  }));

  /* Score against score */
  let view = null;
  const points = () => {
    const [x, y] = [data.scores[Number(find("x").value)], data.scores[Number(find("y").value)]];
    const rows = [];
    for (let i = 0; i < count; i++) if (x[i] !== null) rows.push({ x: x[i], y: y[i], i, on: chosen(i) });
    return rows.sort((a, b) => a.on - b.on); // the chosen ones on top
  };
  const paint = () => { if (view) view.data("points", points()).runAsync(); };
  const axes = () => [Number(find("x").value), Number(find("y").value)];
  const scatter = () => {
    const [x, y] = axes();
    const rho = data.spearman[x][y];
    const said = rho === null ? "" : ` Spearman's rank correlation is ${rho.toFixed(2).replace("-", "−")} over all scored clips.`;
    find("against-text").textContent = `${data.names[y]} against ${data.names[x]}.${said}`;
    find("scatter").setAttribute("aria-label", `Scatter plot of ${data.names[y]} against ${data.names[x]}, a point a clip.${said} The table below has the values.`);
    const axis = (name) => ({ title: name, values: [1, 2, 3, 4, 5], format: "d", ticks: false });
    dover.redraw = dover.redraw.filter((draw) => draw !== scatter.draw);
    const size = count > 2000 ? 12 : count > 200 ? 28 : 60;
    dover.plot(find("scatter"), (c) => ({
      width: "container", height: 380, autosize: { type: "fit", contains: "padding" }, data: { name: "points", values: points() },
      mark: { type: "circle", size, opacity: count > 2000 ? 0.45 : 0.7, tooltip: true, cursor: "pointer" },
      encoding: {
        x: { field: "x", type: "quantitative", scale: { domain: [1, 5], nice: false }, axis: axis(data.names[axes()[0]]) },
        y: { field: "y", type: "quantitative", scale: { domain: [1, 5], nice: false }, axis: axis(data.names[axes()[1]]) },
        color: { condition: { test: "datum.on", value: c.accent }, value: c.quiet },
      },
    }), {
      renderer: "canvas",
      tooltip: (d) => [dover.base(data.videos[d.i]), prompt(d.i), data.names.map((name, k) => `${name} ${dover.fixed(data.scores[k][d.i])}`).join(", ")],
      ready: (made) => {
        view = made;
        view.addEventListener("click", (event, item) => {
          if (!item?.datum) return;
          clearTimeout(waiting);
          for (const id of ["from", "to"]) find(id).value = "";
          find("show").value = "all";
          find("words").value = data.videos[item.datum.i]; // which other rows may have as well
          choose((i) => i === item.datum.i);
          find("ranking").scrollIntoView();
        });
      },
    });
    scatter.draw = dover.redraw.at(-1);
  };
  if (find("scatter")) {
    options(find("x"), data.names, data.names.indexOf("Traditional"));
    options(find("y"), data.names, data.names.indexOf("Alignment"));
    find("x").addEventListener("change", scatter);
    find("y").addEventListener("change", scatter);
    scatter();
  }
})();
