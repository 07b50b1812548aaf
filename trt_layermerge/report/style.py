"""The style sheet of the page: one column, quiet tables, light and dark."""

from __future__ import annotations

from trt_layermerge.report.palette import (
    BLUE,
    DARK,
    FONTS,
    GREEN,
    GRID,
    INK,
    MUTED,
    PICTURE_CLASS,
    RED,
    SURFACE,
)

_ROLES = {
    "ink": INK,
    "muted": MUTED,
    "line": GRID,
    "surface": SURFACE,
    "link": BLUE,
    "good": GREEN,
    "bad": RED,
}
_LIGHT_GROUND, _DARK_GROUND = "#f3f5f7", "#0e1217"


def _variables(ground: str, dark: bool) -> str:
    colours = {role: DARK[light] if dark else light for role, light in _ROLES.items()}
    return "".join(f"--{role}:{value};" for role, value in {**colours, "ground": ground}.items())


PAGE_STYLE = f"""
:root{{color-scheme:light dark;{_variables(_LIGHT_GROUND, False)}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_variables(_DARK_GROUND, True)}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 {FONTS}}}
main{{max-width:1160px;margin:0 auto;padding:40px 24px 80px}}
h1{{font-size:30px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em;overflow-wrap:anywhere}}
h2{{font-size:20px;margin:0 0 14px}}
.lead{{color:var(--muted);margin:0 0 26px;overflow-wrap:anywhere}}
.notice{{margin:0 0 14px;padding:12px 18px;border:2px solid var(--bad);border-radius:10px;
background:var(--surface);font-size:15px;overflow-wrap:anywhere}}
.notice strong{{color:var(--bad)}}
.answers{{display:grid;grid-template-columns:repeat(auto-fit,minmax(235px,1fr));gap:14px}}
.answer,.unverified,main>section{{background:var(--surface);border:1px solid var(--line);
border-radius:10px}}
.answer{{padding:16px 18px;border-top:4px solid var(--muted)}}
.answer.good{{border-top-color:var(--good)}}
.answer.bad{{border-top-color:var(--bad)}}
.answer h2{{font-size:14px;font-weight:600;color:var(--muted);margin:0}}
.answer p{{margin:0;font-size:14px;line-height:1.45;overflow-wrap:anywhere}}
.answer .figure{{font-size:27px;font-weight:650;line-height:1.35;
font-variant-numeric:tabular-nums}}
.answer.good h2 span{{color:var(--good)}}
.answer.bad h2 span{{color:var(--bad)}}
.unverified{{margin:14px 0;padding:14px 18px;font-size:14px;border-left:4px solid var(--muted)}}
.unverified h2{{font-size:14px;margin:0 0 4px}}
.unverified p{{margin:0}}
.unverified ul{{margin:0;padding-left:20px}}
nav{{display:flex;flex-wrap:wrap;gap:4px 20px;margin:22px 2px;font-size:14px}}
a{{color:var(--link);text-decoration:none}}
a:hover{{text-decoration:underline}}
main>section{{padding:24px 26px;margin:0 0 18px}}
figure{{margin:0 0 20px;overflow-x:auto}}
figcaption,main>section>p,main>section>ul{{color:var(--muted);font-size:14px;max-width:75ch}}
main>section>ul{{padding-left:20px}}
figcaption{{margin-top:8px}}
.{PICTURE_CLASS}{{display:block;max-width:100%;height:auto}}
.table{{overflow-x:auto;margin:0 0 18px}}
table{{border-collapse:collapse;font-size:14px;line-height:1.4}}
th,td{{text-align:left;vertical-align:top;padding:6px 22px 6px 0;
border-bottom:1px solid var(--line);overflow-wrap:anywhere}}
th{{color:var(--muted);font-weight:600;overflow-wrap:normal}}
.number{{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}}
pre{{background:var(--ground);border-radius:8px;padding:14px 16px;overflow-x:auto;font-size:13px;
line-height:1.5}}
@media print{{body{{background:none}}nav{{display:none}}.answer,main>section{{break-inside:avoid}}}}
"""
