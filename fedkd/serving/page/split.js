// The split: what the planner reckons for the form's picture, and the part of it that the slider shows.

import { drawChart } from "./chart.js";
import { get, hasToken } from "./edge.js";
import { at, made, picked, problem, state, wish } from "./state.js";
import { commandWords, parts, quantity, splitWords } from "./words.js";

const PROFILE = {
  device_flops_per_s: (plan) => plan.device.flops_per_s,
  device_watts: (plan) => plan.device.watts,
  edge_flops_per_s: (plan) => plan.edge.flops_per_s,
  edge_watts: (plan) => plan.edge.watts,
  bandwidth_bps: (plan) => plan.link.bandwidth_bps,
  distance_m: (plan) => plan.link.distance_m,
};
let reckoning = null;
let touched = false;

const deviceSteps = () => Number(at("device-steps").value);
const scale = (field) => Number(field.dataset.scale ?? 1);

function query() {
  const { num_inference_steps: steps, guidance_scale, scheduler, model } = wish();
  const asked = new URLSearchParams({ model, steps, guidance_scale, scheduler, decode: picked("decode") });
  for (const field of at("profiles").elements) {
    if (!field.name || !field.checkValidity()) continue;
    if (field.type === "checkbox") asked.set(field.name, field.checked);
    else if (field.value !== "") asked.set(field.name, Number(field.value) * scale(field));
  }
  return asked;
}

// Ask the edge for the table of splits, and show it; an older question is given up.
export async function reckon() {
  if (!state.facts || !at("steps").checkValidity() || !at("guidance").checkValidity()) return;
  reckoning?.abort();
  reckoning = new AbortController();
  try {
    state.plan = await get(`v1/plan?${query()}`, { signal: reckoning.signal });
    at("plan-problem").textContent = "";
    showPlan();
  } catch (error) {
    if (error.name !== "AbortError") at("plan-problem").textContent = problem(error);
  }
}

function showPlan() {
  const { plan } = state;
  const slider = at("device-steps");
  slider.max = plan.evaluations;
  if (!touched) slider.value = Math.round(plan.evaluations / 2);
  for (const [name, value] of Object.entries(PROFILE)) {
    const field = at("profiles").elements[name];
    if (field.value === "" && document.activeElement !== field) field.value = value(plan) / scale(field);
  }
  const measured = plan.measured_flops_per_s;
  at("measured").textContent = measured
    ? `This edge does ${quantity(measured, "FLOP/s")}, measured on what it has drawn.`
    : "Draw a picture, and the edge’s own speed shows here.";
  at("take-measured").hidden = !measured;
  at("chosen").textContent = splitWords(plan.chosen.device_steps, plan.evaluations, plan.chosen.order);
  at("reasons").replaceChildren(...plan.chosen.reasons.map((reason) => made("li", "", reason)));
  showSplit();
}

export function showSplit() {
  const { plan } = state;
  if (!plan) return;
  const steps = deviceSteps();
  const total = plan.evaluations;
  const order = picked("order");
  at("share").textContent = `${steps} of ${total}`;
  at("device-steps").setAttribute("aria-valuetext", splitWords(steps, total, order));
  showBar(steps, total, order);
  at("parts").replaceChildren(
    ...parts(plan, steps, order).map(([who, what]) => made("li", "", made("span", `tag ${who}`, who), made("span", "", what))),
  );
  showCosts(steps, order);
  showCharts(steps, order);
  const chosen = plan.chosen;
  at("take-choice").disabled = steps === chosen.device_steps && (steps % total === 0 || order === chosen.order);
  showCommand();
}

function showBar(steps, total, order) {
  const sides = [["device", steps], ["edge", total - steps]];
  if (order === "edge_first") sides.reverse();
  const bar = at("bar");
  for (const [place, [who, count]] of sides.entries()) {
    const part = bar.children[place] ?? bar.appendChild(made("div"));
    part.className = who;
    part.style.flexGrow = count;
    part.hidden = count === 0;
    part.textContent = count / total > 0.2 ? `${who} ${count}` : count;
  }
}

function showCosts(steps, order) {
  const { plan } = state;
  const found = plan.costs[order];
  const rows = [
    ["Device computes", "s", found.device_s],
    ["Edge computes", "s", found.edge_s],
    ["Network", "s", found.network_s],
    ["Delay", "s", found.delay_s],
    ["Energy", "J", found.energy_j],
    ["of it the device’s", "J", found.device_s.map((seconds) => seconds * plan.device.watts)],
  ];
  at("costs").replaceChildren(
    ...rows.map(([name, unit, values]) => {
      const head = made("th", "", name);
      head.scope = "row";
      const cells = [steps, 0].map((place) => made("td", "", quantity(values[place], unit)));
      return made("tr", name === "Delay" || name === "Energy" ? "sum" : "", head, ...cells);
    }),
  );
}

function showCharts(steps, order) {
  const { costs, chosen } = state.plan;
  const marks = { here: { steps, order }, chosen: { steps: chosen.device_steps, order: chosen.order } };
  const charts = [["delay-chart", "Delay", "s", "delay_s"], ["energy-chart", "Energy", "J", "energy_j"]];
  for (const [id, name, unit, cost] of charts) {
    const curves = { device_first: costs.device_first[cost], edge_first: costs.edge_first[cost] };
    drawChart(at(id), { name, unit, curves, ...marks });
  }
  const alike = JSON.stringify(costs.device_first) === JSON.stringify(costs.edge_first);
  at("solid-name").textContent = alike ? "both orders alike" : "device first";
  at("dashed-name").hidden = alike;
}

export function showCommand() {
  const { facts, plan, models } = state;
  if (!plan) return;
  const edge = new URL(".", location.href).href.replace(/\/$/, "");
  const split = { deviceSteps: deviceSteps(), order: picked("order") };
  const words = commandWords({ wish: wish(), facts, plan, ...split, severalModels: models.length > 1, edge });
  // No line ends within an option.
  const spaced = words.flatMap((word) => [" ", word.startsWith("-") ? made("span", "option", word) : word]);
  at("command").replaceChildren(...spaced.slice(1));
  at("command-hint").textContent = hasToken() ? "It reads the token from the environment variable FEDKD_TOKEN." : "";
}

export function moveTo(steps) {
  touched = true;
  at("device-steps").value = steps;
  showSplit();
}

export function takeChoice() {
  const { chosen } = state.plan;
  document.querySelector(`input[name=order][value=${chosen.order}]`).checked = true;
  moveTo(chosen.device_steps);
}

export function takeMeasured() {
  const speed = Number((state.plan.measured_flops_per_s / 1e9).toPrecision(3));
  at("profiles").elements.edge_flops_per_s.value = speed;
  return reckon();
}
