// What the parts of the page share: the served model, the planner's table, and the fields of the form.

import { EdgeError, hasToken } from "./edge.js";

export const state = { facts: null, models: [], plan: null };

export const at = (id) => document.getElementById(id);

export function made(kind, className = "", ...content) {
  const element = document.createElement(kind);
  if (className) element.className = className;
  element.append(...content);
  return element;
}

export const picked = (name) => document.querySelector(`input[name=${name}]:checked`).value;

export function wish() {
  return {
    prompt: at("prompt").value,
    model: state.facts.name,
    num_inference_steps: Number(at("steps").value),
    seed: Number(at("seed").value),
    guidance_scale: Number(at("guidance").value),
    scheduler: at("scheduler").value,
  };
}

export function askForToken() {
  at("token-form").hidden = false;
  at("change-token").hidden = true;
  at("token").focus();
}

// What to tell the user; an edge that wants a token is given the chance to ask for it.
export function problem(error) {
  if (error.name === "AbortError") return "";
  if (!(error instanceof EdgeError)) console.error(error);
  else if (error.status === 401) {
    askForToken();
    return hasToken() ? "The edge does not know this token." : "";
  }
  return error.message;
}
