// Drawing at the edge: the form's picture, step by step.

import { draw } from "./edge.js";
import { reckon } from "./split.js";
import { at, made, problem, state, wish } from "./state.js";
import { quantity } from "./words.js";

const PREVIEWS = 12; // at most so many of one picture
const SMALL_PIXELS = 128; // smaller pictures are shown in whole pixels
let running = null;
let pictureUrl = "";

export const cancel = () => running?.abort();

export async function onDraw(event) {
  event.preventDefault();
  if (running || !state.facts) return;
  running = new AbortController();
  at("draw").disabled = true;
  at("cancel").hidden = false;
  at("problem").textContent = "";
  at("status").textContent = "Encoding the prompt…";
  at("previews").replaceChildren();
  at("save").hidden = true;
  const wanted = wish();
  const began = performance.now();
  try {
    const total = state.plan?.evaluations ?? wanted.num_inference_steps;
    const previewEvery = Math.max(1, Math.ceil(total / PREVIEWS));
    const { blob, edgeSeconds } = await draw(wanted, { previewEvery, signal: running.signal, onEvent: onStep });
    const seconds = (performance.now() - began) / 1000;
    showPicture(blob, wanted);
    at("status").textContent = `Done in ${quantity(seconds, "s")}, the edge’s share ${quantity(edgeSeconds, "s")}; seed ${wanted.seed}.`;
    reckon(); // the edge has measured itself meanwhile
  } catch (error) {
    at("status").textContent = error.name === "AbortError" ? "Cancelled." : "";
    at("problem").textContent = problem(error);
  } finally {
    running = null;
    at("draw").disabled = false;
    at("cancel").hidden = true;
    at("progress").hidden = true;
  }
}

function onStep({ name, data }) {
  if (name === "session.progress") {
    at("progress").hidden = false;
    at("progress").max = data.total;
    at("progress").value = data.step;
    at("status").textContent = `Step ${data.step} of ${data.total}, at the edge`;
  } else if (name === "session.preview") {
    const source = `data:image/png;base64,${data.b64_png}`;
    showImage(source, `Preview after step ${data.step} of ${data.total}`, "preview");
    const image = made("img", small());
    image.src = source;
    image.alt = `After step ${data.step}`;
    at("previews").append(made("li", "", image, made("span", "", data.step)));
  }
}

const small = () => (Math.max(...state.facts.resolution) < SMALL_PIXELS ? "small" : "");

function showImage(source, alt, kind) {
  at("canvas-empty").hidden = true;
  const picture = at("picture");
  picture.src = source;
  picture.alt = alt;
  picture.hidden = false;
  picture.dataset.kind = kind;
  picture.className = small();
}

function showPicture(blob, wanted) {
  if (pictureUrl) URL.revokeObjectURL(pictureUrl);
  pictureUrl = URL.createObjectURL(blob);
  showImage(pictureUrl, `Picture of: ${wanted.prompt}`, "final");
  at("save").href = pictureUrl;
  at("save").hidden = false;
}
