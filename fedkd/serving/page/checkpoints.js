// The list of checkpoints with what they scored and what they descend from.

import { made } from "./state.js";
import { size } from "./words.js";

const STATES = { collected: "files removed", elsewhere: "not held here" };

const anchor = (reference) => `checkpoint-${reference.replace(/[^\w.-]/g, "-")}`;

function when(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleDateString("en", { dateStyle: "medium" });
}

function entry(version, known) {
  const heading = made("h3", "", version.reference);
  const named = version.served_as.filter((name) => name !== version.reference.split(":")[0]);
  if (version.served_as.length) heading.append(made("span", "badge serving", `served${named.length ? ` as ${named.join(", ")}` : ""}`));
  for (const alias of version.aliases) heading.append(made("span", "badge", alias));
  if (STATES[version.state]) heading.append(made("span", "badge", STATES[version.state]));
  const item = made("li", `${version.served_as.length ? "serving" : ""} ${version.state === "here" ? "" : "gone"}`, heading);
  item.id = anchor(version.reference);

  const facts = [
    version.edges.length ? `round ${version.round}, taught by ${version.edges.join(", ")}` : version.round && `round ${version.round}`,
    version.size_bytes && size(version.size_bytes),
    when(version.created),
    version.base_model && `base ${version.base_model}`,
    version.licence && `licence ${version.licence}`,
  ].filter(Boolean);
  if (facts.length) item.append(made("p", "", facts.join(" · ")));

  if (version.parents.length) {
    const line = made("p", "", "from ");
    version.parents.forEach((parent, place) => {
      const link = made("a", "", parent);
      link.href = `#${anchor(parent)}`;
      line.append(place ? ", " : "", known.has(parent) ? link : parent);
    });
    item.append(line);
  }
  const scores = Object.entries(version.metrics).map(([name, value]) => made("span", "", `${name} ${Number(value.toPrecision(4))}`));
  if (scores.length) item.append(made("p", "scores", ...scores));
  if (version.digest) {
    const digest = made("span", "digest", version.digest.slice(0, 12));
    digest.title = version.digest;
    item.append(made("p", "", "digest ", digest));
  }
  return item;
}

export function showCheckpoints(list, found) {
  const known = new Set(found.data.map((version) => version.reference));
  const items = found.data.map((version) => entry(version, known));
  if (found.left_off) items.push(made("li", "gone", `and ${found.left_off} more`));
  list.replaceChildren(...items);
}
