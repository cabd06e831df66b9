// `penstock pool check`: whether a pool holds together, and, with `--repair`, what would be done
// about it; with `--yes` it is.

import type { Command } from 'commander';
import {
  checkPool,
  repairPool,
  type CheckReport,
  type RecoveryReport,
  type RepairReport,
} from '../dedup/index.js';
import { PenstockError } from '../errors.js';
import { Exit, printOutcome, printText } from './output.js';
import { untilInterrupted, withDevice } from './pool-session.js';
import type { Finish } from './program.js';

interface CheckWords {
  readonly data?: boolean;
  readonly repair?: boolean;
  readonly dropLost?: boolean;
  readonly yes?: boolean;
  readonly json?: boolean;
}

/** What applying a journal took, as it stands in JSON. */
export interface RecoveryFacts {
  readonly entries: number;
  readonly records: number;
  readonly blocks_lost: number;
  readonly duration_ms: number;
}

export function configureCheck(command: Command, finish: Finish): void {
  command
    .command('check')
    .description('prove that maps, counts and free space of a pool agree; changes nothing')
    .argument('<uri>', 'the device of the pool; who has it open should leave it quiet meanwhile')
    .option('--data', 'read all blocks, and compare them with their fingerprints')
    .option('--repair', 'say what would make it agree again, and change nothing')
    .option('--yes', 'with --repair: do it')
    .option('--drop-lost', 'with --repair: what cannot be read becomes zeros, or is gone')
    .option('--json', 'print JSON alone on stdout')
    .action(async (uri: string, _: object, self: Command) => {
      const words = self.optsWithGlobals<CheckWords>();
      finish(words.repair === true ? await repair(uri, words) : await check(uri, words));
    });
}

async function check(uri: string, words: CheckWords): Promise<number> {
  if (words.yes === true || words.dropLost === true) {
    const word = words.yes === true ? '--yes' : '--drop-lost';
    throw new PenstockError('BAD_OPTION', `${word} is nothing without --repair`, {
      hint: 'a check alone changes nothing',
      exitCode: Exit.USAGE,
    });
  }
  const data = words.data === true;
  const report = await withDevice(uri, (device, signal) =>
    untilInterrupted(checkPool(device, { data, signal }), signal),
  );
  if (words.json !== true) {
    printText(formatReport(report));
    return report.clean ? Exit.OK : Exit.FAILED;
  }
  const failure = report.clean
    ? null
    : corrupt(summaryOf(report), '`penstock pool check --repair` says what would be done about it');
  return printOutcome(true, 'pool-check', checkFacts(report), '', failure);
}

function corrupt(message: string, hint: string): PenstockError {
  return new PenstockError('POOL_CORRUPT', message, { hint });
}

async function repair(uri: string, words: CheckWords): Promise<number> {
  const { data = false, dropLost = false, yes = false, json = false } = words;
  let shown = { left: 0, leftTotal: 0 };
  const report = await withDevice(uri, (device, signal) => {
    const repairing = repairPool(device, {
      data,
      dropLost,
      signal,
      dryRun: !yes,
      // What it will do comes before it does it.
      onPlan: (plan) => {
        shown = { left: plan.left.length, leftTotal: plan.leftTotal };
        if (!json) printText(formatPlan(plan, yes));
      },
    });
    return untilInterrupted(repairing, signal);
  });
  const { check, left, leftTotal } = report;
  const failure = repairFailure(report);
  if (json) return printOutcome(true, 'pool-repair', repairFacts(report), '', failure);
  if (check !== null) {
    // What was not known when the plan was told.
    const later = formatLeft(left.slice(shown.left), leftTotal - shown.leftTotal);
    printText([...later, formatReport(check)].join('\n'));
  }
  return failure === null ? Exit.OK : Exit.FAILED;
}

/** Null: the pool is well. That one does not open is among what is left. */
function repairFailure(report: RepairReport): PenstockError | null {
  const { check, planTotal, left, leftTotal, loses, pages } = report;
  if (check === null && planTotal > 0) {
    const message = `nothing was changed; --yes writes these: pages: ${pages}`;
    return corrupt(message, 'run it again with `--yes` once you agree to the plan');
  }
  const hint = loses ? '`--drop-lost` gives up what is lost' : 'go by a copy of the pool';
  if (check?.clean === false) return corrupt(summaryOf(check), hint);
  return leftTotal === 0 ? null : corrupt(`left as it is: ${left[0] ?? ''}`, hint);
}

function checkFacts(report: CheckReport): object {
  const { clean, findings, findingsTotal, pages, nodes, blocks, volumes, journalEntries } = report;
  return {
    ...{ clean, findings, findings_total: findingsTotal },
    ...{ pages, nodes, blocks, volumes, journal_entries: journalEntries },
  };
}

function repairFacts(report: RepairReport): object {
  const { done, plan, planTotal, left, leftTotal, loses, pages, journalEntries } = report;
  const { recovery, check } = report;
  return {
    ...{ done, plan, plan_total: planTotal, left, left_total: leftTotal, loses },
    ...{ pages, journal_entries: journalEntries },
    recovery: recovery === null ? null : recoveryFacts(recovery),
    check: check === null ? null : checkFacts(check),
  };
}

export function recoveryFacts(report: RecoveryReport): RecoveryFacts {
  const { entries, records, blocksLost, ms } = report;
  return { entries, records, blocks_lost: blocksLost, duration_ms: ms };
}

function formatPlan(report: RepairReport, yes: boolean): string {
  const { plan, planTotal, left, leftTotal, pages, journalEntries } = report;
  const lines = plan.map((line) => `repair  ${line}`);
  if (planTotal > plan.length) lines.push(`repair  … and ${planTotal - plan.length} more`);
  lines.push(...formatLeft(left, leftTotal));
  if (report.loses)
    lines.push(
      '--drop-lost makes zeros of what is lost, frees its space, and drops what cannot be applied',
    );
  if (planTotal === 0) return [...lines, 'nothing is repaired: nothing was changed'].join('\n');
  if (journalEntries > 0) lines.push(`journal: entries that are applied then: ${journalEntries}`);
  if (yes) lines.push(`pages that are written: ${pages}`);
  else lines.push(`nothing was changed; --yes writes these: pages: ${pages}`);
  return lines.join('\n');
}

function formatLeft(left: readonly string[], total: number): string[] {
  const lines = left.map((line) => `leave   ${line}`);
  return total > left.length ? [...lines, `leave   … and ${total - left.length} more`] : lines;
}

function formatReport(report: CheckReport): string {
  const { findings, findingsTotal, journalEntries } = report;
  const lines = findings.map(
    ({ kind, where, message }) => `${kind}: ${where.page} (page ${where.pbn}): ${message}`,
  );
  if (findingsTotal > findings.length) lines.push(`… and ${findingsTotal - findings.length} more`);
  if (journalEntries > 0) {
    lines.push(`${journalEntries} entries of the journal follow the state that was checked`);
  }
  return [...lines, summaryOf(report)].join('\n');
}

function summaryOf({ findingsTotal, pages, blocks, volumes }: CheckReport): string {
  const result = findingsTotal === 0 ? 'clean' : `${findingsTotal} findings`;
  return `${result}: ${pages} pages of metadata, ${blocks} blocks, ${volumes} volumes`;
}
