"""report_style.py - the style sheet of report.html: light and dark, desk, phone and paper."""

_SHADES = "".join(f".t{i}{{background:color-mix(in srgb,var(--c1) {i * 8}%,transparent)}}"
                  for i in range(10))

STYLE = """
:root{color-scheme:light dark;--c0:#2f6db3;--c1:#c9701d;--c2:#2e8b6b;--c3:#7d5aa8;--c4:#7a828c;
--ink:#1d2329;--muted:#68717b;--grid:#e2e5e9;--paper:#fff;--soft:#f5f6f8;--warn:#fdf1dc}
@media (prefers-color-scheme:dark){:root{--c0:#6fa8e6;--c1:#e39a52;--c2:#5fbf9b;--c3:#b091da;
--c4:#99a2ad;--ink:#e4e7ea;--muted:#98a1ab;--grid:#30363d;--paper:#15181c;--soft:#1d2126;
--warn:#3a2d14}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,
"Segoe UI","Noto Sans","Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 28px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:20px;margin:56px 0 14px;padding-top:18px;border-top:1px solid var(--grid)}
h4{font-size:14px;margin:0 0 6px}
header p{margin:0;color:var(--muted)}
p{margin:0 0 10px}
small{color:var(--muted);font-size:.85em;white-space:nowrap}
footer,.note{color:var(--muted);font-size:13.5px}
footer{margin-top:56px}
.none{color:var(--muted);font-style:italic}
header .banner{background:var(--warn);color:var(--ink);padding:12px 16px;border-radius:8px;
margin:0 0 24px}
.bigs{display:flex;flex-wrap:wrap;gap:12px 52px;margin:22px 0}
.big b{display:block;font-size:48px;line-height:1.05;letter-spacing:-.02em;font-weight:650;
font-variant-numeric:tabular-nums}
.big span{font-size:14px}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px 24px;margin:0;
padding:16px 18px;background:var(--soft);border-radius:10px}
dt{font-size:13px;color:var(--muted)}
dd{margin:0;font-variant-numeric:tabular-nums}
.dot{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:7px}
.dot.c0{background:var(--c0)}.dot.c1{background:var(--c1)}.dot.c2{background:var(--c2)}
.dot.c3{background:var(--c3)}.dot.c4{background:var(--c4)}
.legend .dot{margin-left:16px}.legend .dot:first-child{margin-left:0}
.legend{font-size:14px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));
gap:30px 44px}
figure{margin:0}
.intervals{max-width:680px;margin:0 0 14px;overflow-x:auto}.intervals svg{min-width:440px}
.wide{overflow-x:auto;margin:0 0 12px}
.graph{min-width:800px}
table{border-collapse:collapse;min-width:min(560px,100%);font-size:14px;
font-variant-numeric:tabular-nums}
td{white-space:nowrap}
th,td{padding:7px 11px;text-align:right;border-bottom:1px solid var(--grid);vertical-align:top}
thead th{font-weight:500;color:var(--muted);vertical-align:bottom;font-size:13px;line-height:1.3}
th:first-child{text-align:left;padding-left:0}
tbody th{font-weight:500;min-width:150px}
.yes,.no{white-space:nowrap;font-weight:600}
.yes{color:var(--c2)}.no{color:var(--c1)}
article{margin:0 0 26px;padding:16px 18px;background:var(--soft);border-radius:10px}
.prompt{font-weight:600}
.three{display:grid;grid-template-columns:repeat(3,1fr);gap:22px}
.three>div{min-width:0}
.text{font-size:14.5px;white-space:pre-wrap;overflow-wrap:anywhere}
.think{color:var(--muted)}
details{border-bottom:1px solid var(--grid);padding:8px 0}
summary{cursor:pointer;font-size:14px;overflow-wrap:anywhere}
.tokens span{border-radius:3px;padding:1px 3px}
details .text{margin:8px 0;line-height:1.9}
@media (max-width:720px){main{padding:24px 16px 40px}.three{grid-template-columns:1fr}
.big b{font-size:38px}.bigs{gap:12px 34px}h1{font-size:25px}
tbody th{position:sticky;left:0;background:var(--paper);min-width:128px}}
@media print{.charts{grid-template-columns:1fr 1fr;gap:16px 28px}h2{margin-top:30px}
:root{--paper:#fff;--ink:#000;--muted:#444;--grid:#ccc;--soft:#fff;--c0:#2f6db3;
--c1:#c9701d;--c2:#2e8b6b;--c3:#7d5aa8;--c4:#7a828c}main{max-width:none;padding:0}
body{font-size:11pt}figure,article,tr,dl{break-inside:avoid}h2{break-after:avoid}
.wide{overflow:visible}.graph{min-width:0}table{font-size:8.5pt}th,td{padding:3px 5px}
article{border:1px solid var(--grid)}.banner,.tokens span,.dot{print-color-adjust:exact}}
""" + _SHADES
