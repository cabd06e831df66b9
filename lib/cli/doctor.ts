// `penstock doctor`: what this machine has and lacks, each line with its fix. Exit code 3 when some
// check fails; a warning is something that works, only with less.

import { statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import type { Command } from 'commander';
import { type Root, fileRoot } from '../pci/index.js';
import type { Check, CheckStatus, Facts } from './check.js';
import {
  checkHugepages1G,
  checkHugepages2M,
  checkIommu,
  checkMemlock,
  checkVfio,
} from './checks-devices.js';
import {
  checkAddon,
  checkCgroup,
  checkCpu,
  checkKernel,
  checkNode,
  checkTmp,
  checkUring,
} from './checks-host.js';
import { Exit, printJson, printText } from './output.js';
import type { Finish } from './program.js';

export function configure(command: Command, finish: Finish): void {
  command.action(async (options: { json?: boolean }) => {
    const checks = runChecks(fileRoot(), await gatherFacts());
    if (options.json === true) printJson('doctor', { ok: isReady(checks), checks });
    else printText(formatChecks(checks, process.stdout.isTTY));
    finish(isReady(checks) ? Exit.OK : Exit.NOT_READY);
  });
}

export function runChecks(root: Root, facts: Facts): Check[] {
  return [
    checkKernel(root),
    checkNode(facts),
    checkAddon(facts),
    checkUring(root, facts),
    checkHugepages2M(root),
    checkHugepages1G(root),
    checkMemlock(root),
    checkIommu(root),
    checkVfio(root),
    checkCpu(root),
    checkCgroup(root),
    checkTmp(facts),
  ];
}

export function isReady(checks: readonly Check[]): boolean {
  return checks.every((check) => check.status !== 'fail');
}

export function formatChecks(checks: readonly Check[], color: boolean): string {
  const width = Math.max(...checks.map((check) => check.name.length));
  const lines: string[] = [];
  for (const { name, status, detail, fix } of checks) {
    lines.push(`${paint(status, color)}  ${name.padEnd(width)}  ${detail}`);
    if (fix !== '') lines.push(`${' '.repeat(width + 8)}→ ${fix}`);
  }
  const failed = checks.filter((check) => check.status === 'fail').length;
  const warned = checks.filter((check) => check.status === 'warn').length;
  const verdict =
    failed > 0 ? 'not ready' : warned > 0 ? 'ready, with less than it could' : 'ready';
  lines.push('', `${verdict}: ${failed} failed, ${warned} warnings, ${checks.length} checks`);
  return lines.join('\n');
}

function paint(status: CheckStatus, color: boolean): string {
  const word = status.padEnd(4);
  if (!color) return word;
  const code = status === 'ok' ? 32 : status === 'warn' ? 33 : 31;
  return `\x1b[${code}m${word}\x1b[0m`;
}

async function gatherFacts(): Promise<Facts> {
  const tmpFolder = tmpdir();
  const space = statfsSync(tmpFolder);
  const { addonError, uring } = await tryAddon();
  return {
    nodeVersion: process.version,
    uring,
    addonError,
    tmpFolder,
    tmpFreeBytes: space.bavail * space.bsize,
  };
}

/** Loads the addon and sets up a ring with it: what is there on paper may still be forbidden. */
async function tryAddon(): Promise<Pick<Facts, 'addonError' | 'uring'>> {
  try {
    const { probeUring, Ring } = await import('../uring/index.js');
    const { available, reason, hint, opcodes } = probeUring();
    if (!available) return { addonError: '', uring: { available, reason, hint, detail: '' } };
    const ring = Ring.open({ entries: 2 });
    const detail = `${opcodes.length} operations; rings are ${ring.describe()}`;
    ring.close();
    return { addonError: '', uring: { available, reason, hint, detail } };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return { addonError: reason, uring: { available: false, reason, hint: '', detail: '' } };
  }
}
