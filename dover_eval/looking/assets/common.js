"use strict";
/* What the pages share. Text from a results file only ever goes through textContent. */
const dover = {
  data: JSON.parse(document.getElementById("data").textContent),
  dark: matchMedia("screen and (prefers-color-scheme: dark)"), // paper is white
  redraw: [],
};

dover.make = (tag, options = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "style") Object.assign(node.style, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
dover.find = (id) => document.getElementById(id);
dover.fixed = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
dover.signed = (value, digits = 2) => (value < 0 ? "−" : value > 0 ? "+" : "") + Math.abs(value).toFixed(digits);
dover.share = (score) => `${Math.max(0, Math.min(100, ((score - 1) / 4) * 100))}%`;
// As it is written, from either side; whole where it is pointed at, for a long one is cut.
dover.prompt = (text, name = "prompt") => dover.make("div", { class: name, dir: "auto", title: text }, text);
dover.base = (name) => name.split(/[\\/]/).pop();

/* Plots: Vega-Lite in the page's colours, drawn anew when these change. */
dover.colours = () => {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  return Object.fromEntries(["card", "ink", "muted", "line", "accent", "warm", "quiet"].map((n) => [n, read(n)]));
};
dover.plot = (node, spec, { renderer = "svg", tooltip, ready } = {}) => {
  const draw = async () => {
    // One picture with one name, the node's own: the tree of marks inside is not for reading aloud.
    const stage = dover.make("div", { "aria-hidden": "true", style: { width: "100%" } });
    node.replaceChildren(stage);
    const c = dover.colours();
    const config = {
      background: null, font: getComputedStyle(document.body).fontFamily, view: { stroke: null },
      axis: { labelColor: c.muted, titleColor: c.muted, gridColor: c.line, domainColor: c.line, tickColor: c.line,
        labelFontSize: 12, titleFontSize: 12.5, titleFontWeight: 500, labelPadding: 5, titlePadding: 10 },
      legend: { labelColor: c.ink, titleColor: c.muted, labelFontSize: 12.5, symbolStrokeWidth: 3, titleFontWeight: 500 },
      text: { color: c.ink, font: getComputedStyle(document.body).fontFamily },
    };
    const options = { actions: false, ast: true, renderer, config, tooltip: tooltip ? dover.tip(tooltip) : false };
    const { view } = await vegaEmbed(stage, typeof spec === "function" ? spec(c) : spec, options);
    if (ready) ready(view);
    return view;
  };
  dover.redraw.push(draw);
  return draw();
};
dover.dark.addEventListener("change", () => dover.redraw.forEach((draw) => draw()));

dover.tip = (lines) => (handler, event, item, value) => {
  document.querySelector(".tip")?.remove();
  if (!value || !item.datum) return;
  const [head, ...rest] = lines(item.datum);
  const tip = dover.make("div", { class: "tip", "aria-hidden": "true" }, dover.make("b", { dir: "auto" }, head),
    ...rest.map((line) => dover.make("div", { dir: "auto" }, line)));
  document.body.append(tip);
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${event.clientY + height + 24 > innerHeight ? Math.max(8, event.clientY - height - 12) : event.clientY + 16}px`;
};

/* Clips: bytes become an object URL when they are first shown, for Safari plays no data URL. */
dover.urls = new Map();
dover.url = (key, base64) => {
  if (!dover.urls.has(key)) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    dover.urls.set(key, URL.createObjectURL(new Blob([bytes], { type: "video/mp4" })));
  }
  return dover.urls.get(key);
};
dover.screen = (key, clip, { name, badge, side } = {}) => {
  const marks = [side && dover.make("span", { class: "side" }, side), badge && dover.make("span", { class: "badge" }, badge)];
  if (!clip || clip.note) {
    return dover.make("div", { class: "unplayed" }, dover.make("span", {}, clip ? clip.note : "no preview was made"), ...marks);
  }
  const video = dover.make("video", { muted: true, loop: true, playsinline: true, preload: "auto", tabindex: "-1", "aria-hidden": "true" });
  video.muted = true;
  video.src = dover.url(key, clip.mp4);
  const button = dover.make("button", { type: "button", class: "screen", "aria-pressed": "false", "aria-label": `Play ${name}` },
    video, dover.make("span", { class: "icon" }), ...marks);
  const show = () => button.setAttribute("aria-pressed", String(!video.paused));
  video.addEventListener("play", show);
  video.addEventListener("pause", show);
  button.play = () => video.play().catch(() => {});
  button.pause = () => video.pause();
  button.addEventListener("click", () => (video.paused ? button.play() : button.pause()));
  return button;
};
dover.playAll = (button, root) => button.addEventListener("click", () => {
  const screens = [...root.querySelectorAll(".screen")];
  const play = button.getAttribute("aria-pressed") !== "true";
  screens.forEach((screen) => (play ? screen.play() : screen.pause()));
  button.setAttribute("aria-pressed", String(play));
  button.textContent = play ? "Pause all" : "Play all";
});
dover.bars = (scores, chosen) => {
  const list = dover.make("div", { class: "bars" });
  dover.data.names.forEach((name, i) => {
    const on = i === chosen ? " on" : "";
    list.append(dover.make("span", { class: `label${on}` }, name),
      dover.make("span", { class: "track", "aria-hidden": "true" }, dover.make("i", { style: { width: dover.share(scores[i]) } })),
      dover.make("span", { class: `number${on}` }, dover.fixed(scores[i])));
  });
  return list;
};
