"use strict";
/* A table of many rows that sorts, filters and turns pages.
   columns: [{label, right, wide, value(i): number | string | null, cell(i, place): Node | string}]; a null comes last. */
dover.table = (root, { columns, count, caption, start, size = 50, onchange }) => {
  const state = { column: start.column, down: start.down, page: 0, keep: () => true, order: [] };
  const body = dover.make("tbody", { role: "rowgroup" });
  const heads = columns.map((column, index) => {
    const label = column.value
      ? dover.make("button", { type: "button", onclick: () => sort(index, index === state.column ? !state.down : column.down ?? false) }, column.label)
      : dover.make("span", {}, column.label);
    return dover.make("th", { scope: "col", role: "columnheader", class: column.right ? "right" : "" }, label);
  });
  const shown = dover.make("p", { class: "muted number", role: "status" });
  const turn = (step) => () => { state.page += step; draw(); root.scrollIntoView({ block: "start" }); };
  const back = dover.make("button", { type: "button", onclick: turn(-1) }, "Previous");
  const next = dover.make("button", { type: "button", onclick: turn(1) }, "Next");
  root.append(
    dover.make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
      dover.make("table", { class: "grid-table stack", role: "table" }, dover.make("caption", { class: "visually-hidden" }, caption),
        dover.make("thead", { role: "rowgroup" }, dover.make("tr", { role: "row" }, ...heads)), body)),
    dover.make("div", { class: "pager" }, shown, dover.make("div", { class: "buttons" }, back, next)));

  const text = new Intl.Collator("en", { numeric: true });
  const compare = (column, down) => (a, b) => {
    const [x, y] = [column.value(a), column.value(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    const sign = typeof x === "string" ? text.compare(x, y) : x - y;
    return (down ? -sign : sign) || a - b;
  };
  const arrange = () => {
    state.order = [];
    for (let i = 0; i < count; i++) if (state.keep(i)) state.order.push(i);
    state.order.sort(compare(columns[state.column], state.down));
    state.page = 0;
    draw();
  };
  const draw = () => {
    const first = state.page * size;
    const rows = state.order.slice(first, first + size).map((i, place) =>
      dover.make("tr", { role: "row" }, ...columns.map((column) =>
        dover.make("td", { role: "cell", class: `${column.class ?? ""}${column.right ? " right" : ""}${column.wide ? " wide" : ""}`, "data-label": column.short ?? column.label },
          column.cell(i, first + place)))));
    if (!rows.length) rows.push(dover.make("tr", { role: "row" }, dover.make("td", { role: "cell", class: "wide muted", colspan: columns.length }, "Nothing fits this filter.")));
    body.replaceChildren(...rows);
    heads.forEach((head, i) => {
      if (i === state.column) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const last = Math.min(first + size, state.order.length);
    const part = state.order.length ? `${first + 1}–${last} of ${state.order.length.toLocaleString("en")}` : "none";
    shown.textContent = state.order.length === count ? part : `${part} (${count.toLocaleString("en")} in all)`;
    back.disabled = first === 0;
    next.disabled = last >= state.order.length;
  };
  const sort = (column, down) => {
    Object.assign(state, { column, down });
    arrange();
    onchange?.(state);
  };
  arrange();
  return { sort, filter: (keep) => { state.keep = keep; arrange(); }, state };
};
