"""Parts of the report page that speak of the federation: bytes, privacy, events, lineage, audit log."""
# ruff: noqa: E501

STATUS = """\
{% set s = r.status or {} %}
{% if s.state == "stopped" %}
<p class="note bad">This run stopped{% if s.phase %} in round {{ s.round }}, {{ s.phase }}{% endif %}: {{ s.why }}</p>
{% elif s.state == "unfinished" %}
<p class="note">This run is not finished: round {{ s.round }}, {{ s.phase }}{% if s.last %}; its last sign of life was at {{ s.last }}{% endif %}.</p>
{% elif r.stopped %}
<p class="note bad">This run stopped: {{ r.stopped }}</p>
{% endif %}
"""

BYTES = """\
{% if nodes %}
<section id="bytes">
<h2>Bytes</h2>
<p>In messages towards the server (up) and from it (down), what nodes pulled from a registry, and what users sent straight to their edges (edge).</p>
{{ bytes_chart }}
<div class="scroll"><table>
<thead><tr><th>node</th><th>up</th><th>down</th><th>registry</th><th>edge</th></tr></thead>
<tbody>
{% for n in nodes %}
<tr><th>{{ n.node }}</th><td>{{ n.up | size }}</td><td>{{ n.down | size }}</td><td>{{ n.registry | size }}</td><td>{{ n.edge | size }}</td></tr>
{% endfor %}
{% if more_nodes %}<tr><th>{{ more_nodes.nodes }} more</th><td>{{ more_nodes.up | size }}</td><td>{{ more_nodes.down | size }}</td><td>{{ more_nodes.registry | size }}</td><td>{{ more_nodes.edge | size }}</td></tr>{% endif %}
</tbody></table></div>
<details><summary>By round, phase and node{% if more_nodes %} (the first {{ nodes | length }} of a phase; report.json has all){% endif %}</summary>
<div class="scroll"><table>
<thead><tr><th>round</th><th class="words">phase</th><th class="words">node</th><th>up</th><th>down</th><th>registry</th><th>edge</th></tr></thead>
<tbody>
{% for number_, phase, line in entries %}
<tr><th>{{ number_ }}</th><td class="words">{{ phase }}</td><td class="words">{{ line.node }}</td><td>{{ line.up | size }}</td><td>{{ line.down | size }}</td><td>{{ line.registry | size }}</td><td>{{ line.edge | size }}</td></tr>
{% endfor %}
</tbody></table></div></details>
</section>
{% endif %}
"""

PRIVACY = """\
{% if users %}
<section id="guard">
<h2>Guard and privacy</h2>
<p>Private pictures stay with their user; only synthetic ones leave. The guard draws a synthetic picture again, and then refuses it, when its distance (RMS over pixels, 0 to 1) to the nearest private picture is below the recipe's <code>synthesis.min_distance</code>. “Among private” is the same distance among the private pictures themselves.</p>
<p>{{ privacy.users | number }} user{{ "s" if privacy.users != 1 }} gave {{ privacy.kept | number }} pictures; {{ privacy.refused | number }} of those drawn were refused ({{ privacy.refused_share | percent }}).{% if privacy.distance_min is not none %} The nearest lies {{ privacy.distance_min | number }} from a private one{% if privacy.ratio is not none %}; on average they lie {{ privacy.ratio | number }} times as far from private pictures as those lie from each other{% endif %}.{% endif %}</p>
<div class="scroll"><table>
<thead><tr><th>round</th><th class="words">user</th><th class="words">edge</th>{% for key, heading in user_columns %}<th>{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>
{% for number_, u in users[:120] %}
<tr><th>{{ number_ }}</th><td class="words">{{ u.name }}</td><td class="words">{{ u.edge }}</td>{% for key, heading in user_columns %}<td>{% if key == "seconds" %}{{ u[key] | duration }}{% else %}{{ u[key] | number }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% if users | length > 120 %}<p class="note">And {{ users | length - 120 }} more, in report.json.</p>{% endif %}
{% if budgets %}
<h3>Differential privacy at the edges</h3>
<div class="scroll"><table>
<thead><tr><th>round</th><th class="words">edge</th><th>ε</th><th>δ</th></tr></thead>
<tbody>{% for number_, edge, epsilon, delta in budgets %}
<tr><th>{{ number_ }}</th><td class="words">{{ edge }}</td><td>{{ epsilon | number }}</td><td>{{ delta | number }}</td></tr>
{% endfor %}</tbody></table></div>
{% endif %}
</section>
{% endif %}
"""

TEACHERS = """\
{% if teachers %}
<section id="teachers">
<h2>Teachers</h2>
<p>λ says how far the student trusts a teacher, on average over the pictures. A teacher that stands out or is worse than the base gets 0.</p>
<div class="scroll"><table>
<thead><tr><th>round</th><th class="words">teacher</th><th>mean λ</th><th class="words">why 0</th></tr></thead>
<tbody>{% for number_, name, weight, why in teachers %}
<tr><th>{{ number_ }}</th><td class="words">{{ name }}</td><td>{{ weight | number }}</td><td class="words">{{ why or "–" }}</td></tr>
{% endfor %}</tbody></table></div>
</section>
{% endif %}
"""

EVENTS = """\
{% if r.events %}
<section id="events">
<h2>What happened</h2>
<div class="scroll"><table>
<thead><tr><th>round</th><th class="words">phase</th><th class="words">node</th><th class="words">what</th></tr></thead>
<tbody>{% for e in r.events[:200] %}
<tr><th>{{ e.round }}</th><td class="words">{{ e.phase }}</td><td class="words">{{ e.node }}</td><td class="words">{{ e.what }}</td></tr>
{% endfor %}</tbody></table></div>
{% if r.events | length > 200 %}<p class="note">And {{ r.events | length - 200 }} more, in report.json.</p>{% endif %}
</section>
{% endif %}
"""

LINEAGE = """\
{% if r.lineage %}
<section id="lineage">
<h2>Lineage</h2>
<p>Each version and what it was made from, the newest first. “To fetch” is what somebody needs who holds the parent.</p>
<div class="scroll"><table>
<thead><tr><th>version</th><th class="words">from</th><th>round</th><th class="words">taught by</th><th>known</th><th>taught</th><th>size</th><th>to fetch</th><th class="words">signed by</th><th class="words">here</th></tr></thead>
<tbody>{% for v in r.lineage %}
<tr><th>{{ v.reference }}</th><td class="words">{{ (v.parents or []) | join(", ") or "–" }}</td><td>{{ v.round | number }}</td><td class="words">{{ (v.edges or []) | join(", ") or "–" }}</td><td>{{ v.known | percent }}</td><td>{{ v.taught | percent }}</td><td>{{ v.size_bytes | size }}</td><td>{{ v.fetch_bytes | size }}</td><td class="words">{% if v.signer %}<code>{{ v.signer }}</code>{% else %}–{% endif %}</td><td class="words">{{ v.state }}</td></tr>
{% endfor %}</tbody></table></div>
</section>
{% endif %}
"""

AUDIT = """\
{% if r.audit %}
<section id="audit">
<h2>Audit log</h2>
{% if r.audit.verified %}
<p class="good">{{ r.audit.lines | number }} lines, and none was changed, removed or inserted.</p>
{% else %}
<p class="bad">The log does not hold: {{ r.audit.problem or "it could not be verified" }}</p>
{% endif %}
<p>Last line <code>{{ r.audit.head }}</code>{% if r.audit.signer %}; its first {{ r.audit.signed | number }} lines were signed by <code>{{ r.audit.signer }}</code>{% else %}; it is <strong>unsigned</strong>: whoever can write to this run could have replaced it as a whole{% endif %}. Check it again: <code>fedkd audit verify {{ r.run or "RUN" }}</code></p>
</section>
{% endif %}
"""

SECTIONS = {
    "status.html": STATUS,
    "bytes.html": BYTES,
    "privacy.html": PRIVACY,
    "teachers.html": TEACHERS,
    "events.html": EVENTS,
    "lineage.html": LINEAGE,
    "audit.html": AUDIT,
}
