// `npm run soak -- NAME [--seed N] [--rounds N | --seconds N]`: random work for as long as one
// likes.
// The same seed makes the same choices (threads and kernels keep their freedom of timing).

import { parseArgs } from 'node:util';
import { adapterSoak } from './adapter.js';
import { dedupErrorsSoak } from './dedup-errors.js';
import { dedupKillSoak } from './dedup-kill.js';
import { faultsSoak } from './faults.js';
import { dedupCrashSoak } from './dedup-crash.js';
import { runSoak, type Soak } from './harness.js';
import { idcChainSoak } from './idc-chain.js';
import { idcDeviceSoak } from './idc-device.js';
import { idcFuzzSoak } from './idc-fuzz.js';
import { idcKillSoak } from './idc-kill.js';
import { killSoak } from './kill.js';
import { memorySoak } from './memory.js';
import { nvmeFuzzSoak } from './nvme-fuzz.js';
import { nvmeResetsSoak } from './nvme-resets.js';
import { requestsSoak } from './requests.js';
import { workersSoak } from './workers.js';

const SOAKS: Readonly<Record<string, Soak>> = {
  kill: killSoak,
  requests: requestsSoak,
  adapter: adapterSoak,
  memory: memorySoak,
  workers: workersSoak,
  faults: faultsSoak,
  'dedup-crash': dedupCrashSoak,
  'dedup-errors': dedupErrorsSoak,
  'dedup-kill': dedupKillSoak,
  'idc-device': idcDeviceSoak,
  'idc-fuzz': idcFuzzSoak,
  'idc-kill': idcKillSoak,
  'idc-chain': idcChainSoak,
  'nvme-resets': nvmeResetsSoak,
  'nvme-fuzz': nvmeFuzzSoak,
};

function usage(problem: string): never {
  console.error(`${problem}\nusage: npm run soak -- NAME [--seed N] [--rounds N | --seconds N]`);
  for (const [name, soak] of Object.entries(SOAKS)) {
    console.error(`  ${name.padEnd(13)}${soak.full} ${soak.unit}`);
  }
  process.exit(2);
}

function count(text: string | undefined, fallback: number, option: string): number {
  if (text === undefined) return fallback;
  const value = /^\d+$/.test(text) ? Number(text) : NaN;
  if (!(value >= 0 && value <= 0xffffffff)) usage(`--${option} is a count, not ${text}`);
  return value;
}

function readWords() {
  const options = {
    seed: { type: 'string' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
  } as const;
  try {
    return parseArgs({ allowPositionals: true, options });
  } catch (error) {
    return usage((error as Error).message);
  }
}

const { values, positionals } = readWords();
const name = positionals[0] ?? '';
const soak = SOAKS[name];
if (soak === undefined || positionals.length !== 1) usage(`there is no soak '${name}'`);
// An end by signal goes through `exit`, so that scratch folders go too.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(1));
const timed = values.seconds !== undefined;
process.exitCode = await runSoak(name, soak, {
  seed: count(values.seed, Date.now() % 2 ** 31, 'seed'),
  units: count(values.rounds, timed ? Infinity : soak.full, 'rounds'),
  seconds: count(values.seconds, Infinity, 'seconds'),
});
