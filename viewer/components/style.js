import { FONT, MONO } from "../_js/constants.js";
// Styles of all components: type, spacing and controls. Colours are variables that `mount` sets.
export const CSS = `
.ha { color: var(--ink); --mono: ${MONO}; font: 13px/1.4 ${FONT};
  -webkit-font-smoothing: antialiased; box-sizing: border-box; width: 100%; height: 100%; min-height: 0; position: relative; text-align: left }
:where(.ha) *, :where(.ha) *::before { box-sizing: border-box }
:where(.ha h2, .ha p) { margin: 0; font-size: inherit; font-weight: inherit }
:where(.ha canvas) { display: block } :where(.ha [hidden]) { display: none }
:where(.ha button, .ha input, .ha select) { font: inherit; color: inherit }
:where(.ha button) { cursor: pointer }
.ha :focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; border-radius: 4px }
.num { font-variant-numeric: tabular-nums } .dim { color: var(--ink-3) } .strong { font-weight: 600 }
.grow { flex: 1; min-width: 0 } .ell { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.row { display: flex; align-items: center; gap: 8px } .mid { display: inline-flex; min-width: 0; max-width: 100%; overflow: hidden; white-space: pre; unicode-bidi: isolate } .mid > :first-child { min-width: 2ch } .mid > :last-child { flex: none }
.card { background: var(--surface); border: 1px solid var(--line); border-radius: 8px; display: flex; flex-direction: column;
  min-width: 0; min-height: 0; height: 100%; overflow: hidden }
.card > header { display: flex; align-items: center; gap: 8px; min-height: 40px; padding: 0 12px; border-bottom: 1px solid var(--line); flex: none }
.card > header h2 { font-weight: 600; white-space: nowrap; min-width: 0; overflow: hidden; text-overflow: ellipsis } .card > header .sub { color: var(--ink-3); font-size: 12px; flex-shrink: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.card > header .count { margin-left: auto; flex-shrink: 1000; min-width: 0; overflow: hidden; text-overflow: ellipsis; font-size: 11px; color: var(--ink-2); white-space: nowrap }
.card > header .seg, .card > header .sel, .card > header .btn, .card > header .legend { flex: none }
@media (max-width: 1100px) { .card > header { flex-wrap: wrap; padding-top: 5px; padding-bottom: 5px; row-gap: 4px } .card > header .grow { display: none } .card > header .seg, .card > header .tools { margin-left: auto } }
.body { padding: 12px; min-height: 0; flex: 1; position: relative; overflow: auto; scrollbar-width: thin; scrollbar-color: var(--line-2) transparent }
.sect { font-size: 12px; font-weight: 600; color: var(--ink-2); margin: 0 0 6px; display: flex; flex-wrap: wrap; align-items: center; gap: 0 8px }
.sect .r { margin-left: auto; max-width: 100%; font-weight: 400; color: var(--ink-3); overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.ha hr { border: 0; border-top: 1px solid var(--line); margin: 12px 0 }
.btn { display: inline-flex; align-items: center; gap: 6px; height: 24px; padding: 0 8px; border: 1px solid var(--line-2); border-radius: 6px;
  background: var(--surface); font-weight: 500; font-size: 12px; white-space: nowrap }
.btn:hover { background: var(--surface-2) } .btn.quiet { border-color: transparent; color: var(--ink-2) }
.btn.primary { background: var(--accent); border-color: var(--accent); color: var(--on-accent); font-weight: 600 }
.seg { display: flex; border: 1px solid var(--line-2); border-radius: 6px; overflow: hidden; background: var(--surface) }
.seg button { flex: 1; height: 26px; border: 0; background: transparent; padding: 0 4px; font-size: 12px; font-weight: 500; color: var(--ink-2); border-left: 1px solid var(--line) }
.seg button:first-child { border-left: 0 } .seg button[aria-pressed=true] { background: var(--accent-soft); color: var(--accent-ink); font-weight: 600 }
.tag { display: inline-flex; align-items: center; height: 20px; padding: 0 7px; border-radius: 4px; background: var(--surface-2); color: var(--ink-2); font-size: 11px; font-weight: 500; white-space: nowrap }
.tag.accent { background: var(--accent-soft); color: var(--accent-ink) } .tag.warn { background: var(--warn-soft); color: var(--warn) }
.ck { display: flex; align-items: center; gap: 7px; font-size: 12px; color: var(--ink-2); cursor: pointer; margin-top: 8px } .ck input { accent-color: var(--accent); margin: 0 }
.fld { display: grid; grid-template-columns: 1fr auto; gap: 2px 8px; align-items: center; font-size: 12px; color: var(--ink-2); margin-bottom: 8px }
.fld output { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums } .fld input { grid-column: 1/3 }
.ha input[type=range] { appearance: none; width: 100%; height: 16px; background: transparent; margin: 0 }
.ha input[type=range]::-webkit-slider-runnable-track { height: 4px; border-radius: 2px; background: linear-gradient(var(--accent),var(--accent)) 0/var(--p,50%) 100% no-repeat var(--surface-3) }
.ha input[type=range]::-webkit-slider-thumb { appearance: none; width: 14px; height: 14px; border-radius: 50%; background: var(--surface); border: 2px solid var(--accent); margin-top: -5px }
.ha input[type=range]::-moz-range-track { height: 4px; border-radius: 2px; background: var(--surface-3) }
.bar { height: 6px; border-radius: 3px; background: var(--surface-3); overflow: hidden } .bar i { display: block; height: 100%; background: var(--accent) }
.hchip { display: inline-flex; align-items: center; gap: 6px; height: 22px; padding: 0 7px 0 4px; border: 1px solid var(--line-2); border-radius: 4px; background: var(--surface); font-size: 12px; white-space: nowrap }
.hchip i { width: 12px; height: 12px; border-radius: 3px; display: inline-block } .hchip.off { opacity: .4 }
.tip { position: fixed; z-index: 50; pointer-events: none; background: var(--surface); border: 1px solid var(--line-2); border-radius: 8px; box-shadow: var(--shadow); padding: 8px 10px; font-size: 12px; min-width: 150px; max-width: 320px }
.tip-title { font-weight: 600; margin-bottom: 4px; overflow-wrap: anywhere } .tip-rows { display: grid; grid-template-columns: 1fr auto auto; gap: 2px 0; white-space: nowrap }
.tip-label { color: var(--ink-2); padding-right: 16px } .tip-value { text-align: right; font-variant-numeric: tabular-nums; font-weight: 500 }
.tip-note { text-align: right; color: var(--ink-3); padding-left: 10px } .hot { color: var(--ink); font-weight: 600 } .tip-foot { margin-top: 5px; color: var(--ink-3); font-size: 11px }
.message { padding: 24px; color: var(--ink-2); max-width: 60ch; white-space: pre-line }
.message b { display: block; color: var(--ink); font-size: 15px; font-weight: 600; margin-bottom: 6px }
.chip-c { font: 11px var(--mono); color: var(--ink-3) }
[data-picture] { position: relative } [data-picture] > header { padding-right: 38px }
.downloads { position: absolute; top: 7px; right: 8px; z-index: 15; font-size: 12px } .downloads summary { list-style: none; width: 26px; height: 26px; border-radius: 6px; display: grid; place-items: center; cursor: pointer; color: var(--ink-2); font-size: 15px }
.downloads summary::-webkit-details-marker { display: none } .downloads summary:hover, .downloads[open] summary { background: var(--surface-2); color: var(--ink) }
.downloads > div { position: absolute; right: 0; top: 28px; background: var(--surface); border: 1px solid var(--line-2); border-radius: 6px; box-shadow: var(--shadow); padding: 6px 8px; display: grid; gap: 2px; width: max-content; max-width: 320px }
.downloads .formats { display: flex; gap: 2px; align-items: center } .downloads .formats > span { flex: 1; padding-right: 12px; color: var(--ink-2); white-space: nowrap } .downloads .reason { margin: 4px 0 0; color: var(--bad) }
.downloads .formats button { border: 0; background: none; text-align: left; padding: 4px 8px; border-radius: 4px } .downloads .formats button:hover { background: var(--surface-2) }
.mirror { position: absolute; contain: strict; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; border-collapse: collapse; display: block; left: 0; bottom: 0 }
.mirror.open { position: absolute; contain: none; inset: 44px 8px 8px 8px; width: auto; height: auto; overflow: auto; clip-path: none; display: block; z-index: 20; padding: 8px;
  background: var(--surface); border: 1px solid var(--line-2); border-radius: 8px; font-size: 12px }
.mirror caption { text-align: left; font-weight: 600; padding: 0 0 6px } .mirror th { text-align: left; color: var(--ink-3); font-weight: 500; padding: 2px 16px 2px 0 }
.mirror td { padding: 2px 16px 2px 0; border-top: 1px solid var(--line); font-variant-numeric: tabular-nums; unicode-bidi: isolate }
`;
