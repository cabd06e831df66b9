// The report's first sections: what came out, what failed, and how it compares with the peer.

import type { Comparison, Figures } from './compare.js';
import { formatNanoseconds, scaleBytes, scaleCount } from './numbers.js';
import { escape, tableHtml } from './report-html.js';
import type { Run } from './report-page.js';
import type { JobResult } from './types.js';

/** Up to this many results get cards of their own; more stand in one table. */
const CARDS_MAX = 2;

/** Cards or a table of the results, and what went wrong. */
export function resultSections(results: readonly JobResult[], runs: readonly Run[]): string {
  const labelOf = (index: number): string => runs[index]?.label ?? '';
  if (results.length <= CARDS_MAX) {
    const sections = results.map((result, index) => {
      const cards = figuresOf(result).map(
        ([name, value]) => `<div><dt>${escape(name)}</dt><dd>${escape(value)}</dd></div>`,
      );
      return `<section><h2>${escape(labelOf(index))}</h2><p>${escape(workload(result))}</p>
${alerts(result)}<dl class="cards">${cards.join('')}</dl>${damage(result)}</section>`;
    });
    return sections.join('\n');
  }
  const columns = new Set(results.flatMap((result) => figuresOf(result).map(([name]) => name)));
  const rows = results.map((result, index) => {
    const figures = new Map(figuresOf(result));
    return [labelOf(index), ...[...columns].map((column) => figures.get(column) ?? '–')];
  });
  const workloads = [...new Set(results.map(workload))];
  return `<section><h2>Results</h2><p>${escape(workloads.join(' · '))}</p>
${results.map(alerts).join('')}${tableHtml({ head: ['run', ...columns], rows }, 'Results')}
${results.map(damage).join('')}</section>`;
}

function figuresOf(result: JobResult): [string, string][] {
  const { read, write, verify } = result;
  const { percentile } = (read.ios >= write.ios ? read : write).clatNs;
  const below = (key: string): string => formatNanoseconds(percentile[key] ?? 0);
  const figures: [string, string][] = [
    ['IOPS', scaleCount(read.iops + write.iops)],
    ['Bandwidth', `${scaleBytes(read.bwBytes + write.bwBytes)}/s`],
    ['Median latency', below('50.000000')],
    ['99 % below', below('99.000000')],
    ['99.9 % below', below('99.900000')],
    ['CPU per I/O', formatNanoseconds(result.cpuNsPerIo)],
  ];
  if (verify !== null) {
    const { checkedBlocks, failureCount } = verify;
    const [good, damaged] = [scaleCount(checkedBlocks), scaleCount(failureCount)];
    figures.push(['Verify', failureCount === 0 ? `${good} good` : `${damaged} DAMAGED`]);
  }
  return figures;
}

function workload({ options }: JobResult): string {
  const workers = options.numjobs > 1 ? `, ${options.numjobs} workers` : '';
  const depth =
    options.rateIops > 0 ? `at ${scaleCount(options.rateIops)} IOPS` : 'as fast as it goes';
  return `${options.rw}, ${scaleBytes(options.bs)}${workers}, ${depth}, on ${options.uri}`;
}

function alerts({ error, errors, interrupted }: JobResult): string {
  const texts: string[] = [];
  if (interrupted) texts.push('Interrupted: the figures cover what was done until then.');
  if (error !== null) texts.push(`${errors} failed: ${error.code}: ${error.message} ${error.hint}`);
  return texts.map((text) => `<p class="bad" role="alert">${escape(text)}</p>`).join('');
}

function damage({ options, verify }: JobResult): string {
  if (verify === null || verify.failureCount === 0) return '';
  const rows = verify.failures.map(({ block, kind, offset, detail }) => [
    String(block),
    kind,
    String(offset),
    detail,
  ]);
  const head = ['block', 'damage', 'byte offset', 'detail'];
  return tableHtml({ head, rows }, `Damaged blocks of ${options.name}`);
}

const COMPARED: readonly [string, keyof Figures, (value: number) => string][] = [
  ['IOPS', 'iops', scaleCount],
  ['median latency', 'latencyP50Ns', formatNanoseconds],
  ['99 % below', 'latencyP99Ns', formatNanoseconds],
  ['CPU per I/O', 'cpuNsPerIo', formatNanoseconds],
];

/** Medians and ratios of all jobs in one table, the rounds in another; '' without comparisons. */
export function comparisonSection(
  comparisons: readonly Comparison[],
  results: readonly JobResult[],
  runs: readonly Run[],
): string {
  const [first] = comparisons;
  if (first === undefined) return '';
  const labelOf = ({ result, job }: Comparison): string =>
    runs[results.indexOf(result)]?.label ?? job.name;
  const rows = comparisons.flatMap((comparison) =>
    COMPARED.map(([name, key, format]) => [
      `${labelOf(comparison)}: ${name}`,
      format(comparison.penstock[key]),
      format(comparison.fio[key]),
      quotient(comparison.ratio[key]),
    ]),
  );
  const rounds = comparisons.flatMap((comparison) =>
    comparison.rounds.map((round, index) => [
      `${labelOf(comparison)}, round ${index + 1}`,
      scaleCount(round.penstock.iops),
      scaleCount(round.fio.iops),
      quotient(round.penstock.iops / round.fio.iops),
    ]),
  );
  const sets = [...new Set(comparisons.map((comparison) => comparison.optionSet))].join(', ');
  const how =
    'Medians of runs in turn. fio uses io_uring with the options that were fastest here ' +
    `(${sets}). ` +
    'Latency runs from submission to completion; CPU time is that of the whole process tree.';
  const head = ['figure', 'Penstock', first.version, 'ratio'];
  const medians = tableHtml({ head, rows }, 'Medians');
  const roundHead = ['round', 'Penstock IOPS', `${first.version} IOPS`, 'ratio'];
  const each = tableHtml({ head: roundHead, rows: rounds }, 'Rounds');
  return `<section><h2>${escape(`Against ${first.version}`)}</h2><p>${escape(how)}</p>
${medians}<details><summary>Every round</summary>${each}</details></section>`;
}

function quotient(ratio: number): string {
  return Number.isFinite(ratio) ? ratio.toFixed(3) : '–';
}
