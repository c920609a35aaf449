"""The report page of a distillation job as a Jinja template."""
# ruff: noqa: E501

DISTILLATION_PAGE = """\
{% macro image(path, words) %}
{% set url = picture(path) %}
{% if url %}<img src="{{ url }}" alt="{{ words }}">{% else %}<span class="missing">no picture</span>{% endif %}
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ r.name or "run" }} · fedkd distillation</title>
<style>
{% include "style.css" %}
.sheets { display: grid; gap: 1.2rem; }
.sides { display: grid; grid-template-columns: 1fr 1fr; color: var(--soft); font-size: .85rem; text-align: center; margin-bottom: .4rem; }
</style>
</head>
<body>
<main>
<header>
<p class="kicker">fedkd {{ r.fedkd_version or "" }} distillation report{% if r.started %} · {{ r.started }}{% endif %}</p>
<h1>{{ r.name or "run" }}</h1>
{% if r.description %}<p class="lead">{{ r.description }}</p>{% endif %}
{% if r.command %}<pre>{{ r.command }}</pre>{% endif %}
</header>

<div class="cards">
<div class="card"><b>{{ r.method }}</b><span>from {{ teachers | length }} teacher{{ "s" if teachers | length != 1 }} on {{ r.pictures | number }} pictures</span></div>
{% if best %}<div class="card"><b>{{ best.accuracy | percent }} at {{ best.steps }} step{{ "s" if best.steps != 1 }}</b><span>prompts drawn right by the student{% if reference %}; the teacher at {{ reference.steps }}: {{ reference.accuracy | percent }}{% endif %}</span></div>{% endif %}
{% if r.seconds %}<div class="card"><b>{{ r.seconds.training | duration }}</b><span>training, of {{ r.wall_seconds | duration }} in all</span></div>{% endif %}
{% if r.student %}<div class="card"><b>{{ r.student.checkpoint }}/</b><span>the student, a diffusers folder{% if r.student.lora %}; as a LoRA: {{ r.student.lora }}{% endif %}</span></div>{% endif %}
</div>

{% if table %}
<section id="steps">
<h2>Prompt accuracy by number of steps</h2>
<p>The share of pictures in which the reference classifier finds everything that the prompt asks for{% if r.teachers | length > 1 %}; each teacher draws its own concepts{% endif %}. A count in bold is one that the student was made for; “kept” is the student's share of the teacher's at {{ reference.steps if reference else "its best" }} steps.</p>
{{ chart }}
<div class="scroll"><table>
<thead><tr><th>steps</th><th>student</th><th>kept</th><th>student, known</th><th>student, taught</th><th>teacher</th><th>teacher, known</th><th>teacher, taught</th><th>teacher, no guidance</th></tr></thead>
<tbody>
{% for row in table %}
<tr{% if row.student and row.student.made_for %} class="strong"{% endif %}><th>{{ row.steps }}</th><td>{{ row.student.accuracy | percent }}</td><td>{{ row.kept | percent }}</td><td>{{ row.student.known | percent }}</td><td>{{ row.student.taught | percent }}</td><td>{{ row.teacher.accuracy | percent }}</td><td>{{ row.teacher.known | percent }}</td><td>{{ row.teacher.taught | percent }}</td><td>{{ row.unguided.accuracy | percent }}</td></tr>
{% endfor %}
</tbody></table></div>
</section>
{% else %}
<p class="note">No reference classifier judged this run: the pictures below have to speak for themselves.</p>
{% endif %}

{% if r.sheets %}
<section id="sheets">
<h2>The same prompts from the same noise</h2>
<div class="sheets">
{% for sheet in r.sheets %}
<figure>
<div class="sides"><span>student</span><span>teacher</span></div>
{{ image(sheet.picture, "student and teacher at " ~ sheet.steps ~ " steps") }}
<figcaption>{{ sheet.steps }} step{{ "s" if sheet.steps != 1 }}</figcaption>
</figure>
{% endfor %}
</div>
{% if r.sheets[0].prompts %}<details><summary>Prompts, row by row</summary><ol>{% for prompt in r.sheets[0].prompts %}<li>{{ prompt }}</li>{% endfor %}</ol></details>{% endif %}
</section>
{% endif %}

<section id="teachers">
<h2>Teachers</h2>
<div class="scroll"><table>
<thead><tr><th>teacher</th><th class="words">from</th><th class="words">draws</th><th>pictures</th><th>mean λ</th><th class="words">left out</th></tr></thead>
<tbody>
{% for t in teachers %}
<tr><th>{{ t.name }}</th><td class="words">{{ t.origin }}</td><td class="words">{{ (t.concepts or []) | join(", ") }}</td><td>{{ t.pictures | number }}</td><td>{{ t.weight | number }}</td><td class="words">{{ t.left_out or "–" }}</td></tr>
{% endfor %}
</tbody></table></div>
</section>

{% if losses %}
<section id="losses">
<h2>Loss curves</h2>
<div class="charts">
{% for title, chart in losses %}<div><h3>{{ title }}</h3>{{ chart }}</div>{% endfor %}
</div>
</section>
{% endif %}

{% if r.samples %}
<section id="samples">
<h2>The student while it learned</h2>
<div class="gallery wide">
{% for path in r.samples %}<figure>{{ image(path, path) }}<figcaption>{{ path | replace("samples/step-", "step ") | replace(".png", "") }}</figcaption></figure>
{% endfor %}
</div>
</section>
{% endif %}

{% if r.seconds %}
<section id="seconds">
<h2>Time</h2>
<div class="scroll"><table>
<thead><tr><th>phase</th><th>time</th></tr></thead>
<tbody>{% for phase, seconds in r.seconds.items() %}<tr><th>{{ phase }}</th><td>{{ seconds | duration }}</td></tr>{% endfor %}</tbody>
</table></div>
</section>
{% endif %}

{% if r.student %}
<section id="use">
<h2>Use the student</h2>
<pre>from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("{{ r.student.checkpoint }}")
pipe(PROMPT{% if r.sampling %}, num_inference_steps={{ r.sampling.num_inference_steps }}, guidance_scale={{ r.sampling.guidance_scale }}{% endif %}).images[0]</pre>
</section>
{% endif %}

{% if recipe_text %}
<section id="recipe">
<h2>Recipe</h2>
<details><summary>Everything that this run was made of</summary><pre>{{ recipe_text }}</pre></details>
</section>
{% endif %}
<footer>The same figures for programs: <a href="report.json">report.json</a></footer>
</main>
</body>
</html>
"""
