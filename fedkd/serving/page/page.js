// The page of an edge: what it serves, a form that draws, a split that is reckoned, and the checkpoints.

import { stepsAt } from "./chart.js";
import { showCheckpoints } from "./checkpoints.js";
import { cancel, onDraw } from "./drawing.js";
import { get, hasToken, useToken } from "./edge.js";
import { moveTo, reckon, showCommand, showSplit, takeChoice, takeMeasured } from "./split.js";
import { askForToken, at, problem, state } from "./state.js";

async function connect() {
  const { data } = await get("v1/models");
  state.models = data.map((model) => model.id);
  at("token-form").hidden = true;
  at("change-token").hidden = !hasToken();
  at("model").replaceChildren(...state.models.map((name) => new Option(name)));
  at("model-field").hidden = state.models.length < 2;
  await useModel(state.models[0]);
}

async function useModel(name) {
  const facts = await get(`v1/model?${new URLSearchParams({ model: name })}`);
  state.facts = facts;
  const [height, width] = facts.resolution;
  const version = facts.version ? `:${facts.version}` : "";
  at("served").textContent = `${facts.name}${version} · ${width}×${height} pixels · ${facts.build.device}, ${facts.dtype}`;
  at("steps").value = facts.num_inference_steps;
  at("guidance").value = facts.guidance_scale;
  at("scheduler").replaceChildren(...facts.schedulers.map((each) => new Option(each.replace(/Scheduler$/, ""), each)));
  at("scheduler").value = facts.scheduler.class;
  const [checkpoints] = await Promise.all([get("v1/checkpoints"), reckon()]);
  showCheckpoints(at("checkpoints"), checkpoints);
}

async function copyCommand() {
  const button = at("copy");
  try {
    await navigator.clipboard.writeText(at("command").textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(at("command")); // no clipboard without https: the user presses Ctrl-C
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

async function onToken(event) {
  event.preventDefault();
  useToken(at("token").value);
  at("token").value = "";
  at("token-problem").textContent = "";
  try {
    await connect();
    at("prompt").focus();
  } catch (error) {
    at("token-problem").textContent = problem(error);
    if (error.status === 401) useToken("");
  }
}

function later(work, delayMs = 250) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, delayMs);
  };
}

at("draw-form").addEventListener("submit", onDraw);
at("cancel").addEventListener("click", cancel);
at("model").addEventListener("change", async () => {
  try {
    await useModel(at("model").value);
  } catch (error) {
    at("problem").textContent = problem(error);
  }
});
for (const id of ["steps", "guidance", "scheduler"]) at(id).addEventListener("input", later(reckon));
for (const id of ["prompt", "seed"]) at(id).addEventListener("input", showCommand);
for (const radio of document.querySelectorAll("input[name=order]")) radio.addEventListener("change", showSplit);
for (const radio of document.querySelectorAll("input[name=decode]")) radio.addEventListener("change", reckon);
at("profiles").addEventListener("input", later(reckon));
at("profiles").addEventListener("submit", (event) => event.preventDefault());
at("device-steps").addEventListener("input", () => moveTo(Number(at("device-steps").value)));
for (const id of ["delay-chart", "energy-chart"]) {
  at(id).addEventListener("pointerdown", (event) => moveTo(stepsAt(at(id), event.clientX, state.plan?.evaluations ?? 0)));
}
at("take-choice").addEventListener("click", takeChoice);
at("take-measured").addEventListener("click", takeMeasured);
at("copy").addEventListener("click", copyCommand);
at("change-token").addEventListener("click", askForToken);
at("token-form").addEventListener("submit", onToken);

try {
  await connect();
} catch (error) {
  at("served").textContent = problem(error) || "This edge asks for a token.";
}
