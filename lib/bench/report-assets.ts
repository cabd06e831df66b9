// The report page's own style and script, as text that is put into the page.
//
// A run and its peer share a colour; the peer's line is dashed, and directions and percentiles
// differ in dash too, for those who see few colours. The script draws what the data script holds
// and nothing else; it draws anew when the colour scheme or the width changes.

export const PAGE_STYLE = `
:root {
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2430; --soft: #55606f; --line: #d9dee5;
  --bad: #a3202f; --grid: #e6eaef;
  --s0: #1f63b5; --s1: #c0540f; --s2: #1c7f55; --s3: #8440a8; --s4: #b02a53; --s5: #5b6675;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12171e; --card: #1b222c; --ink: #e7ecf2; --soft: #a3afbd; --line: #323c49;
    --bad: #ff8d98; --grid: #2a333f;
    --s0: #6fb1ff; --s1: #ffa366; --s2: #62d39b; --s3: #cf9bf0; --s4: #ff8fb0; --s5: #b3bfcc;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header, main { max-width: 1240px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 28px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0; overflow-wrap: anywhere; }
p { margin: 2px 0 10px; color: var(--soft); overflow-wrap: anywhere; }
p.bad { color: var(--bad); font-weight: 600; }
section, figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin: 18px 0; min-width: 0; }
.cards { display: grid; gap: 10px; margin: 0;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.cards div { border-left: 3px solid var(--s0); padding-left: 12px; }
dt { color: var(--soft); font-size: 13px; }
dd { margin: 0; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.charts { display: grid; gap: 18px; margin: 18px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 540px), 1fr)); align-items: start; }
.charts figure { margin: 0; }
.charts .wide { grid-column: 1 / -1; }
.wide .body { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.wide .plot { flex: 3 1 320px; width: auto; min-width: 0; }
.wide details { flex: 2 1 320px; min-width: 0; }
.plot { width: 100%; min-height: 300px; }
.pair { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.pair > * { flex: 1 1 320px; }
.table { overflow-x: auto; min-width: 0; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
caption { text-align: left; color: var(--soft); padding: 10px 0 4px; }
.uplot caption, figure caption { display: none; }
.table th, .table td { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line);
  text-align: right; font-variant-numeric: tabular-nums; }
.table th { font-weight: 600; }
.table tr > :first-child { text-align: left; }
.table tbody th { font-weight: 400; color: var(--soft); white-space: nowrap; }
.table td { overflow-wrap: anywhere; }
.charts .table td { white-space: nowrap; }
details { margin-top: 8px; }
details .table { max-height: 420px; overflow: auto; }
.wide details .table { max-height: none; }
p.bad + .cards { margin-top: 14px; }
summary { cursor: pointer; color: var(--soft); }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 6px;
  padding: 12px; overflow-x: auto; margin: 8px 0; }
noscript p { text-align: center; }
.uplot, .u-legend { color: var(--ink); }
.u-legend { text-align: left; font-size: 13px; }
.u-legend .u-marker { border-radius: 2px; }
:focus-visible { outline: 2px solid var(--s0); outline-offset: 2px; }
@media print { body { background: none; } section, figure { break-inside: avoid; } }
`;

export const CHART_SCRIPT = `
(function () {
  'use strict';
  var charts = JSON.parse(document.getElementById('data').textContent);
  var HEIGHT = 300;
  var DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];

  function short(value, units, base) {
    var unit = 0;
    while (Math.abs(value) >= base && unit < units.length - 1) { value /= base; unit++; }
    return Number(value.toPrecision(3)) + units[unit];
  }
  var FORMATS = {
    count: function (value) { return short(value, ['', 'k', 'M', 'G'], 1000); },
    percent: function (value) { return Number(value.toPrecision(3)) + ' %'; },
    nanoseconds: function (value) { return short(value, [' ns', ' µs', ' ms', ' s'], 1000); },
    seconds: function (value) { return Number(value.toPrecision(4)) + ' s'; },
    depth: function (value) { return String(value); },
    nines: function (value) {
      return Number((100 * (1 - Math.pow(10, -value))).toPrecision(6)) + ' %';
    }
  };
  function format(kind) {
    return function (_plot, value) { return value == null ? '–' : FORMATS[kind](value); };
  }
  function ticks(kind) {
    return function (_plot, values) {
      return values.map(function (value) { return value == null ? '' : FORMATS[kind](value); });
    };
  }
  function decades(_plot, _axis, min, max) {
    var values = [];
    for (var power = Math.floor(Math.log10(min)); power <= Math.ceil(Math.log10(max)); power++) {
      var value = Math.pow(10, power);
      if (value >= min * 0.999 && value <= max * 1.001) values.push(value);
    }
    return values;
  }
  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
  }
  function scaleOf(kind, values) {
    if (kind === 'depth') return { time: false, distr: 3, log: 2 };
    if (kind !== 'nanoseconds') return { time: false };
    var low = Infinity, high = 0;
    values.forEach(function (list) {
      list.forEach(function (value) {
        if (value > 0) { low = Math.min(low, value); high = Math.max(high, value); }
      });
    });
    // Whole decades, so that the axis begins and ends on a label.
    var first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
    var range = [Math.pow(10, first), Math.pow(10, Math.max(last, first + 1))];
    return { time: false, distr: 3, log: 10, range: function () { return range; } };
  }
  function axisOf(kind, chart, vertical) {
    var axis = {
      stroke: color('soft'), grid: { stroke: color('grid'), width: 1 },
      ticks: { stroke: color('line'), width: 1 }, values: ticks(kind),
      font: '12px system-ui, sans-serif', labelFont: '12px system-ui, sans-serif'
    };
    if (vertical) { axis.size = 68; axis.label = chart.yLabel; axis.labelSize = 18; }
    if (kind === 'nanoseconds') axis.splits = decades;
    if (kind === 'depth') axis.splits = function () { return chart.x; };
    if (kind === 'nines') {
      axis.splits = function () { return [0.30103, 1, 2, 3, 4]; };
    }
    return axis;
  }
  function draw(chart) {
    var host = document.getElementById('plot-' + chart.id);
    host.textContent = '';
    var values = chart.series.map(function (series) { return series.values; });
    var yScale = scaleOf(chart.yKind, values);
    if (chart.yKind !== 'nanoseconds') {
      yScale.range = function (_plot, _min, max) { return [0, max > 0 ? max * 1.08 : 1]; };
    }
    var series = chart.series.map(function (line) {
      var stroke = color('s' + line.color % 6);
      var options = {
        label: line.label, stroke: stroke, width: 2, dash: DASHES[line.dash % 4],
        spanGaps: true, value: format(chart.yKind),
        points: { show: chart.style === 'points' || chart.x.length < 3, size: 6 }
      };
      if (chart.style === 'steps') {
        options.paths = uPlot.paths.stepped({ align: 1 });
        options.fill = stroke + '22';
      }
      return options;
    });
    var xScale = scaleOf(chart.xKind, [chart.x]);
    if (chart.xKind === 'nines') xScale.range = function () { return [0, 4.1]; };
    if (chart.xKind === 'seconds') {
      xScale.range = function (_plot, _min, max) { return [0, max]; };
    }
    if (chart.xKind === 'nanoseconds') {
      xScale.range = function () { return [chart.x[0], chart.x[chart.x.length - 1]]; };
    }
    new uPlot({
      width: host.clientWidth, height: HEIGHT,
      scales: { x: xScale, y: yScale },
      axes: [axisOf(chart.xKind, chart, false), axisOf(chart.yKind, chart, true)],
      series: [{ label: { seconds: 'time', nanoseconds: 'latency', nines: 'percentile',
        depth: 'depth' }[chart.xKind], value: format(chart.xKind) }].concat(series),
      cursor: { drag: { x: false, y: false } },
      legend: { markers: { width: 3, dash: function (_plot, index) {
        return index === 0 || chart.series[index - 1].dash % 4 === 0 ? 'solid'
          : chart.series[index - 1].dash % 4 === 2 ? 'dotted' : 'dashed';
      } } }
    }, [chart.x].concat(values), host);
  }
  function drawAll() { charts.forEach(draw); }
  var width = 0, pending = 0;
  function redraw() {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(drawAll);
  }
  drawAll();
  width = document.body.clientWidth;
  addEventListener('resize', function () {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    redraw();
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
})();
`;
