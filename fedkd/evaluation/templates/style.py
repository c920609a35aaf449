"""The report page's style sheet: calm, responsive, light and dark."""
# ruff: noqa: E501

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #fbfaf8; --panel: #fff; --ink: #22242a; --soft: #686c76; --line: #e3e1dc; --good: #1d7a4d; --bad: #b3372f;
  --c0: #9aa3b2; --c1: #4c78a8; --c2: #e0913a; --c3: #5aa469; --c4: #b36ba7; --c5: #c4574f; --c6: #7d6bb3; --c7: #8a7a5c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #16181d; --panel: #1e2127; --ink: #e6e6e3; --soft: #9a9fab; --line: #32363f; --good: #62c494; --bad: #ef8d84;
    --c0: #7b8494; --c1: #77a5d6; --c2: #eeaa5c; --c3: #7cc48b; --c4: #d092c5; --c5: #e2827a; --c6: #a596da; --c7: #b7a684;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: .2rem 0 .6rem; font-weight: 650; }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; font-weight: 620; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; font-weight: 600; }
p { max-width: 44rem; margin: .5rem 0 1rem; }
.kicker, small, .legend, footer, .card span, dt { color: var(--soft); font-size: .85rem; }
.kicker { margin: 0; }
.lead { font-size: 1.1rem; }
.note { color: var(--soft); }
a { color: inherit; }
code, pre { font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .8rem; margin: 1.5rem 0; }
.card, figure { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1rem; margin: 0; }
.card b { display: block; font-size: 1.25rem; font-weight: 620; font-variant-numeric: tabular-nums; }
.good, .good b { color: var(--good); }
.bad, .bad b { color: var(--bad); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .9rem; }
.gallery.wide { grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; text-align: center; }
img { width: 100%; border-radius: 6px; image-rendering: pixelated; display: block; }
.wide img { max-width: 12rem; margin: 0 auto; }
figcaption { margin-top: .5rem; font-size: .92rem; overflow-wrap: anywhere; }
.missing { display: grid; place-items: center; aspect-ratio: 1; border: 1px dashed var(--line); border-radius: 6px; color: var(--soft); font-size: .8rem; }
.steps { display: flex; gap: 2px; margin: .6rem 0; font-size: .75rem; }
.steps i { font-style: normal; padding: .15rem .4rem; border-radius: 4px; color: #fff; min-width: max-content; }
.steps .device { background: #b0672a; }
.steps .edge { background: #3f6a9a; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: 0; font-size: .88rem; }
dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; }
th:first-child, .words { text-align: left; }
.words { white-space: normal; }
tbody th { font-weight: 500; }
.strong > * { font-weight: 650; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--line); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem 1.5rem; }
path { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .3rem 0 1rem; }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .4rem; }
rect.s0 { fill: var(--c0); } rect.s1 { fill: var(--c1); } rect.s2 { fill: var(--c2); } rect.s3 { fill: var(--c3); }
rect.s4 { fill: var(--c4); } rect.s5 { fill: var(--c5); } rect.s6 { fill: var(--c6); } rect.s7 { fill: var(--c7); }
path.s0 { stroke: var(--c0); } path.s1 { stroke: var(--c1); } path.s2 { stroke: var(--c2); } path.s3 { stroke: var(--c3); }
path.s4 { stroke: var(--c4); } path.s5 { stroke: var(--c5); } path.s6 { stroke: var(--c6); } path.s7 { stroke: var(--c7); }
i.s0 { background: var(--c0); } i.s1 { background: var(--c1); } i.s2 { background: var(--c2); } i.s3 { background: var(--c3); }
i.s4 { background: var(--c4); } i.s5 { background: var(--c5); } i.s6 { background: var(--c6); } i.s7 { background: var(--c7); }
footer { margin-top: 3rem; }
@media print { main { max-width: none; } details { display: none; } }
"""
