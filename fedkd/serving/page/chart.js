// A small chart of one cost over the steps on the device, a curve for each order.

import { quantity } from "./words.js";

const BOX = { left: 46, right: 332, top: 10, bottom: 148 };
const NAMESPACE = "http://www.w3.org/2000/svg";

function shape(kind, attributes, text = "") {
  const made = document.createElementNS(NAMESPACE, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

// 0 and at most four round numbers that cover `most`.
function ticks(most) {
  const raw = most / 3 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw * 0.999);
  return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, place) => place * step);
}

// `curves`: {order: values by steps on the device}; `here` and `chosen`: {steps, order}.
export function drawChart(svg, { name, unit, curves, here, chosen }) {
  const total = Object.values(curves)[0].length - 1;
  const marks = ticks(Math.max(...Object.values(curves).flat()));
  const top = marks.at(-1) || 1;
  const x = (steps) => BOX.left + ((BOX.right - BOX.left) * steps) / (total || 1);
  const y = (value) => BOX.bottom - ((BOX.bottom - BOX.top) * value) / top;
  const drawn = [];
  for (const mark of marks) {
    drawn.push(shape("line", { class: "grid", x1: BOX.left, x2: BOX.right, y1: y(mark), y2: y(mark) }));
    drawn.push(shape("text", { x: BOX.left - 5, y: y(mark) + 3.5, "text-anchor": "end" }, mark ? quantity(mark, unit) : "0"));
  }
  for (const steps of new Set([0, Math.round(total / 2), total])) {
    drawn.push(shape("text", { x: x(steps), y: BOX.bottom + 16, "text-anchor": "middle" }, steps));
  }
  for (const [order, values] of Object.entries(curves).reverse()) {
    const points = values.map((value, steps) => `${x(steps).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    drawn.push(shape("polyline", { class: `curve ${order}`, points }));
  }
  const value = curves[here.order][here.steps];
  const best = { x: x(chosen.steps), y: y(curves[chosen.order][chosen.steps]) };
  drawn.push(shape("line", { class: "here", x1: x(here.steps), x2: x(here.steps), y1: BOX.top, y2: BOX.bottom }));
  drawn.push(shape("circle", { class: "dot-mark", cx: x(here.steps), cy: y(value), r: 5 }));
  const diamond = `M${best.x} ${best.y - 6}l6 6l-6 6l-6-6z`;
  drawn.push(shape("path", { class: "star-mark", d: diamond }));
  svg.replaceChildren(...drawn);
  svg.setAttribute(
    "aria-label",
    `${name} from 0 to ${total} steps on the device: ${quantity(curves[here.order][0], unit)} with none, ` +
      `${quantity(value, unit)} with ${here.steps}, ${quantity(curves[here.order][total], unit)} with all; ` +
      `the planner takes ${chosen.steps} with ${quantity(curves[chosen.order][chosen.steps], unit)}.`,
  );
}

// The steps on the device at a pointer's place in the chart.
export function stepsAt(svg, clientX, total) {
  const frame = svg.getBoundingClientRect();
  const x = ((clientX - frame.left) / frame.width) * svg.viewBox.baseVal.width;
  const share = (x - BOX.left) / (BOX.right - BOX.left);
  return Math.round(Math.min(1, Math.max(0, share)) * total);
}
