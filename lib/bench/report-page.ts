// The report's HTML: one page that needs no network and says so in its content security policy.
//
// Invariants:
// 1. Whatever comes from outside (names, URIs, messages, the command line) goes through `escape`,
//    or into the data script, where `<` cannot end it.
// 2. Without script the page still holds every figure, in tables.

import type { Comparison } from './compare.js';
import { scaleBytes } from './numbers.js';
import { OPTION_WORDS } from './option-words.js';
import { CHART_SCRIPT, PAGE_STYLE } from './report-assets.js';
import type { Table } from './report-html.js';
import { escape, jsonForScript, tableHtml } from './report-html.js';
import { comparisonSection, resultSections } from './report-summary.js';
import type { DirectionResult, HostFacts, JobOptions, JobResult, Sample } from './types.js';

/** One line of the charts: a result, or a peer's run of the same job. */
export interface Run {
  label: string;
  options: JobOptions;
  read: DirectionResult;
  write: DirectionResult;
  series: readonly Sample[];
  peer: boolean;
  /** Index of the job's result; its peer has the same. */
  index: number;
}

/** `color` counts runs and directions, `dash` tells lines of one colour apart (0 is solid). */
export interface Line {
  label: string;
  color: number;
  dash: number;
  values: (number | null)[];
}

export interface Chart {
  id: string;
  title: string;
  description: string;
  /** What x is: seconds; latency on a log axis; nines (-log10 of the rest); depth on a log axis. */
  xKind: 'seconds' | 'nanoseconds' | 'nines' | 'depth';
  yKind: 'count' | 'percent' | 'nanoseconds';
  yLabel: string;
  style: 'line' | 'steps' | 'points';
  x: number[];
  series: Line[];
  table: Table | null;
  /** Whether the chart takes the whole width, with its table open beside it. */
  wide: boolean;
}

export interface ReportPage {
  host: HostFacts;
  commandLine: string;
  results: JobResult[];
  comparisons: Comparison[];
  runs: Run[];
  charts: Chart[];
}

export interface ChartLibrary {
  script: string;
  style: string;
  license: string;
}

/** The page as one string. */
export function reportHtml(page: ReportPage, library: ChartLibrary): string {
  const ours = page.runs.filter((run) => !run.peer);
  const names = [...new Set(page.results.map((result) => result.options.name))].join(', ');
  const title = `Penstock bench: ${names}`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escape(title)}</title>
<!-- The charts are drawn by uPlot, included below under its licence:
${escape(library.license).replaceAll('--', '- -')}
-->
<style>${library.style}</style>
<style>${PAGE_STYLE}</style>
</head>
<body>
<header>
<h1>${escape(title)}</h1>
<p>${escape(`${page.host.date} · ${page.host.cpu}, ${page.host.cpus} CPUs · `)}${escape(
    `kernel ${page.host.kernel} · Node ${page.host.node} · Penstock ${page.host.penstock}`,
  )}</p>
</header>
<main>
${resultSections(page.results, ours)}
${comparisonSection(page.comparisons, page.results, ours)}
<div class="charts">
${page.charts.map(figure).join('\n')}
</div>
<section aria-labelledby="how"><h2 id="how">How it was run</h2>
<pre tabindex="0" aria-label="Command line"><code>${escape(page.commandLine)}</code></pre>
<div class="pair">
${tableHtml(optionTable(page.results, ours), 'Options')}
${tableHtml(hostTable(page.host), 'Machine')}
</div></section>
</main>
<noscript><p>The charts need script; the tables hold the same figures.</p></noscript>
<script type="application/json" id="data">${jsonForScript(page.charts)}</script>
<script>${library.script.replaceAll('</script', '<\\/script')}</script>
<script>${CHART_SCRIPT}</script>
</body>
</html>
`;
}

function figure(chart: Chart): string {
  const label = `${chart.title}: ${chart.description}`;
  const table = chart.table === null ? '' : tableHtml(chart.table, chart.title);
  const open = chart.wide ? ' open' : '';
  const details =
    table === '' ? '' : `<details${open}><summary>Figures as a table</summary>${table}</details>`;
  return `<figure${chart.wide ? ' class="wide"' : ''}>
<figcaption><h2>${escape(chart.title)}</h2><p>${escape(chart.description)}</p></figcaption>
<div class="body">
<div class="plot" id="plot-${escape(chart.id)}" role="img" aria-label="${escape(label)}"></div>
${details}</div></figure>`;
}

function optionTable(results: readonly JobResult[], runs: readonly Run[]): Table {
  const rows = OPTION_WORDS.filter((word) => word.key !== 'name').map((word) => [
    word.name,
    ...results.map((result) => String(result.options[word.key])),
  ]);
  rows.unshift(['uri', ...results.map((result) => result.options.uri)]);
  const device = new Set(results.flatMap((result) => Object.keys(result.penstock.device)));
  for (const key of device) {
    const cells = results.map((result) => String(result.penstock.device[key] ?? '–'));
    rows.push([`device: ${key}`, ...cells]);
  }
  return { head: ['option', ...runs.map((run) => run.label)], rows };
}

function hostTable(host: HostFacts): Table {
  const rows = [
    ['CPU', host.cpu],
    ['CPUs', String(host.cpus)],
    ['memory', scaleBytes(host.memoryBytes)],
    ['hugepages', host.hugepages],
    ['kernel', host.kernel],
    ['Node', host.node],
    ['Penstock', host.penstock],
    ['date', host.date],
  ];
  return { head: ['fact', 'value'], rows };
}
