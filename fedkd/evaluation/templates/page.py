"""The report page as a Jinja template; a module, so that it travels in wheels and Flower bundles alike."""
# ruff: noqa: E501

PAGE = """\
{% macro image(path, words) %}
{% set url = picture(path) %}
{% if url %}<img src="{{ url }}" alt="{{ words }}">{% else %}<span class="missing">no picture</span>{% endif %}
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ r.name or "run" }} · fedkd report</title>
<style>
{% include "style.css" %}
</style>
</head>
<body>
<main>
<header>
<p class="kicker">fedkd {{ r.fedkd_version or "" }} report{% if r.started %} · {{ r.started }}{% endif %}</p>
<h1>{{ r.name or "run" }}</h1>
{% if r.description %}<p class="lead">{{ r.description }}</p>{% endif %}
{% if r.command %}<pre>{{ r.command }}</pre>{% endif %}
</header>

{% set concepts = r.concepts or {} %}
<div class="cards">
{% for kind in ("taught", "known") %}
{% set c = concepts[kind] %}
{% if c %}
<div class="card"><b>{{ c.base | percent }} → {{ c.student | percent }}</b><span>prompts drawn right, {{ kind }} concepts, base → student</span></div>
{% endif %}
{% endfor %}
{% if r.split %}
<div class="card {{ 'good' if r.split.bitwise_equal else 'bad' }}"><b>{{ "bit for bit" if r.split.bitwise_equal else "not equal" }}</b><span>split pictures against the unsplit pipeline</span></div>
{% endif %}
{% if rounds %}
<div class="card"><b>{{ totals.up | size }} up, {{ totals.down | size }} down</b><span>in messages between nodes and cloud in {{ rounds | length }} round{{ "s" if rounds | length != 1 }}</span></div>
{% if totals.full %}<div class="card"><b>{{ totals.moved | size }} of {{ totals.full | size }}</b><span>moved to give nodes their checkpoints, of the bytes of full models</span></div>{% endif %}
{% endif %}
{% if r.wall_seconds is defined %}<div class="card"><b>{{ r.wall_seconds | duration }}</b><span>wall time</span></div>{% endif %}
{% if r.checkpoint %}<div class="card"><b>{{ r.checkpoint.name }}{% if r.checkpoint.version %}:{{ r.checkpoint.version }}{% endif %}</b><span>published checkpoint</span></div>{% endif %}
</div>
{% include "status.html" %}
{% if not r.student %}
<p class="note">This run has no student: it stopped before its first distillation ended. What it got to is below.</p>
{% endif %}

{% if r.pictures %}
<section id="pictures">
<h2>Before and after</h2>
{% for kind, words in (("taught", "Taught: what the base did not know"), ("known", "Known: what must not be forgotten")) %}
{% set shown = r.pictures | selectattr("kind", "equalto", kind) | list %}
{% if shown %}
<h3>{{ words }}</h3>
<div class="gallery">
{% for p in shown %}
<figure>
<div class="pair"><div>{{ image(p.base, "base: " ~ p.prompt) }}<small>base</small></div><div>{{ image(p.student, "student: " ~ p.prompt) }}<small>student</small></div></div>
<figcaption>{{ p.prompt }}</figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
{% endfor %}
</section>
{% endif %}

{% if scores %}
<section id="accuracy">
<h2>Prompt accuracy</h2>
<p>The share of pictures in which the reference classifier finds everything that the prompt asks for.</p>
{{ accuracy_chart }}
{% if rounds_chart %}<h3>After each round</h3>
{{ rounds_chart }}{% endif %}
<div class="scroll"><table>
<thead><tr><th>model</th>{% for c in score_columns %}<th>{{ c }}</th>{% endfor %}</tr></thead>
<tbody>
{% for name, values in scores %}
<tr{% if name == "student" %} class="strong"{% endif %}><th>{{ name }}</th>{% for v in values %}<td>{{ v | percent }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
</section>
{% endif %}

{% if r.split %}
<section id="split">
<h2>Pictures drawn together by device and edge</h2>
<p>Each was drawn from the published checkpoint over HTTP, and compared with the unsplit pipeline. Delay and energy are the cost model's, not measured; the times marked so are.</p>
<div class="gallery wide">
{% for s in r.split.images or [] %}
<figure>
{{ image(s.picture, s.prompt or "") }}
<figcaption>{{ s.prompt }}</figcaption>
{% set total = (s.device_steps or 0) + (s.edge_steps or 0) %}
<div class="steps" title="who ran which steps">
{% for who in (("device", "edge") if s.order == "device_first" else ("edge", "device")) %}
{% set n = (s.device_steps if who == "device" else s.edge_steps) or 0 %}
{% if n %}<i class="{{ who }}" style="flex-grow: {{ n | int }}">{{ who }} {{ n }}</i>{% endif %}
{% endfor %}
</div>
<dl>
<dt>scheduler</dt><dd>{{ (s.scheduler or "–") | replace("Scheduler", "") }}</dd>
<dt>model delay</dt><dd>{{ s.delay_s | duration }}</dd>
<dt>model energy</dt><dd>{{ s.energy_j | energy }}</dd>
<dt>device, measured</dt><dd>{{ s.device_seconds | duration }}</dd>
<dt>edge, measured</dt><dd>{{ s.edge_seconds | duration }}</dd>
<dt>on the link</dt><dd>{{ s.bytes_up | size }} up, {{ s.bytes_down | size }} down</dd>
<dt>unsplit</dt><dd class="{{ 'good' if s.bitwise_equal else 'bad' }}">{{ "equal bit for bit" if s.bitwise_equal else "not equal" }}</dd>
</dl>
</figure>
{% endfor %}
</div>
</section>
{% endif %}

{% if rounds %}
<section id="rounds">
<h2>Rounds and phases</h2>
<div class="scroll"><table>
<thead><tr><th>round</th><th class="words">phase</th><th>time</th><th>up</th><th>down</th><th>answered</th></tr></thead>
<tbody>
{% for item in rounds %}
{% for phase in item.phases or [] %}
<tr><th>{{ item.round if loop.first }}</th><td class="words">{{ phase.name }}</td><td>{{ phase.seconds | duration }}</td><td>{{ (phase.bytes or {}).up | size }}</td><td>{{ (phase.bytes or {}).down | size }}</td><td>{% if phase.asked %}{{ phase.answered }} of {{ phase.asked }}{% else %}–{% endif %}</td></tr>
{% endfor %}
<tr class="strong"><th></th><td class="words">round {{ item.round }} in all{% if item.student and item.student.published_as %}, published as {{ item.student.published_as }}{% endif %}</td><td>{{ (item.phases or []) | map(attribute="seconds", default=0) | sum | duration }}</td><td>{{ (item.bytes or {}).up | size }}</td><td>{{ (item.bytes or {}).down | size }}</td><td></td></tr>
{% endfor %}
</tbody></table></div>
{% if deliveries %}
<h3>Checkpoints to nodes</h3>
<p>Nodes fetch only what they lack of a new checkpoint. The bytes that moved, of the bytes that full models would have been for the nodes that took one:</p>
<ul>
{% for number_, words in deliveries %}
<li>Round {{ number_ }}: {{ words }}.</li>
{% endfor %}
</ul>
{% endif %}
{% if left_out %}
<h3>Left out</h3>
<div class="scroll"><table>
<thead><tr><th>round</th><th class="words">phase</th><th class="words">node</th><th class="words">reason</th></tr></thead>
<tbody>{% for number_, phase, node, reason in left_out %}
<tr><th>{{ number_ }}</th><td class="words">{{ phase }}</td><td class="words">{{ node }}</td><td class="words">{{ reason }}</td></tr>
{% endfor %}</tbody></table></div>
{% else %}
<p class="note">No node was left out.</p>
{% endif %}
</section>

{% include "bytes.html" %}
{% include "privacy.html" %}
{% endif %}

{% include "events.html" %}
{% include "teachers.html" %}

{% if losses %}
<section id="losses">
<h2>Loss curves</h2>
<div class="charts">
{% for title, chart in losses %}<div><h3>{{ title }}</h3>{{ chart }}</div>{% endfor %}
</div>
</section>
{% endif %}

{% if r.checkpoint and r.checkpoint.path %}
<section id="checkpoint">
<h2>Use the checkpoint</h2>
<p>{{ r.checkpoint.name }}:{{ r.checkpoint.version }} is a plain diffusers folder{% if r.checkpoint.digest %}, digest <code>{{ r.checkpoint.digest }}</code>{% endif %}.</p>
<pre>from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({{ (r.checkpoint.path or "") | string | tojson }})</pre>
<p>Or serve it from an edge and draw with a device:</p>
<pre>fedkd serve --checkpoint "{{ r.checkpoint.path }}" --port 8000
fedkd generate "{{ r.pictures[0].prompt if r.pictures else "PROMPT" }}" --edge http://127.0.0.1:8000 --device-steps 4</pre>
</section>
{% endif %}

{% include "lineage.html" %}
{% include "audit.html" %}

{% if recipe_text %}
<section id="recipe">
<h2>Recipe</h2>
<details><summary>Everything that this run was made of{% if r.seeds and r.seeds.run is defined %} (seed {{ r.seeds.run }}){% endif %}</summary><pre>{{ recipe_text }}</pre></details>
</section>
{% endif %}
<footer>The same figures for programs: <a href="report.json">report.json</a></footer>
</main>
</body>
</html>
"""
