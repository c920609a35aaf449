// Numbers and splits in words, and the command line that makes the picture.

const PREFIXES = [[1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];

// 0.01234, "s" -> "12.3 ms"
export function quantity(value, unit) {
  if (!value) return `0 ${unit}`;
  const prefixes = unit === "s" ? PREFIXES.slice(3) : PREFIXES;
  const [scale, prefix] = prefixes.find(([each]) => Math.abs(value) >= each * 0.9995) ?? prefixes.at(-1);
  const scaled = value / scale;
  const text = Math.abs(scaled) >= 999.5 ? Math.round(scaled).toLocaleString("en") : String(Number(scaled.toPrecision(3)));
  return `${text} ${prefix}${unit}`;
}

export function size(bytes) {
  const [scale, unit] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([each]) => bytes >= each) ?? [1, "B"];
  return `${Number((bytes / scale).toPrecision(3))} ${unit}`;
}

export const orderWords = { device_first: "device first", edge_first: "edge first" };

const steps = (from, to) => (from === to ? `step ${from}` : `steps ${from} to ${to}`);

export function splitWords(deviceSteps, total, order) {
  if (deviceSteps === 0) return `All ${total} steps at the edge`;
  if (deviceSteps === total) return `All ${total} steps on the device`;
  return `${deviceSteps} of ${total} steps on the device, ${orderWords[order]}`;
}

// The picture's way as [who, what] pairs.
export function parts(plan, deviceSteps, order) {
  const total = plan.evaluations;
  const rows = plan.guidance_scale > 1 ? 2 : 1;
  const latents = size(plan.work.latents_bytes);
  const begins = size(rows * plan.work.embedding_bytes + plan.work.latents_bytes);
  const picture = ["network", `the picture, at most ${size(plan.work.image_bytes)}`];
  if (deviceSteps === 0) return [["edge", `encodes the prompt, does ${steps(1, total)}, decodes`], picture];
  if (deviceSteps === total) {
    return [
      ["edge", "encodes the prompt (the estimate leaves this to the device)"],
      ["network", `prompt embeddings and first latents, ${begins}`],
      ["device", `does ${steps(1, total)}, decodes`],
    ];
  }
  const atEdge = plan.decode === "edge";
  if (order === "device_first") {
    return [
      ["edge", "encodes the prompt"],
      ["network", `prompt embeddings and first latents, ${begins}`],
      ["device", `does ${steps(1, deviceSteps)}`],
      ["network", `latents, ${latents}`],
      ["edge", `does ${steps(deviceSteps + 1, total)}${atEdge ? ", decodes" : ""}`],
      ...(atEdge ? [picture] : [["network", `latents, ${latents}`], ["device", "decodes"]]),
    ];
  }
  const onDevice = `does ${steps(total - deviceSteps + 1, total)}`;
  return [
    ["edge", `encodes the prompt, does ${steps(1, total - deviceSteps)}`],
    ["network", `prompt embeddings and latents, ${begins}`],
    ...(atEdge
      ? [["device", onDevice], ["network", `latents, ${latents}`], ["edge", "decodes"], picture]
      : [["device", `${onDevice}, decodes`]]),
  ];
}

// A word for a POSIX shell.
export function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

// The words of `fedkd generate` for this split; `wish` as for a session. What is the edge's default is left out.
export function commandWords({ wish, facts, plan, deviceSteps, order, severalModels, edge }) {
  const last = wish.prompt.startsWith("-"); // else it would be taken for an option
  const words = ["fedkd", "generate"];
  if (!last) words.push(quoted(wish.prompt));
  words.push("--edge", quoted(edge), "--device-steps", deviceSteps, "--order", order);
  if (deviceSteps && (deviceSteps === plan.evaluations || plan.decode === "device")) words.push("--decode", "device");
  words.push("--steps", wish.num_inference_steps, "--seed", wish.seed);
  if (wish.guidance_scale !== facts.guidance_scale) words.push("--guidance", wish.guidance_scale);
  if (wish.scheduler !== facts.scheduler.class) words.push("--scheduler", wish.scheduler);
  if (severalModels) words.push("--model", quoted(facts.name));
  if (facts.dtype !== "float32") words.push("--dtype", facts.dtype);
  words.push("-o", "picture.png");
  if (last) words.push("--", quoted(wish.prompt));
  return words.map(String);
}
