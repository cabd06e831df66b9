// Runs the setup commands in a guest as an administrator would, and reports what came of each.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename } from 'node:path';
import { printFailure } from '../../../lib/cli/output.js';
import { buildProgram } from '../../../lib/cli/program.js';
import { report, until } from '../inside.js';

const [free = '', swap = '', nic = '', ...pair] = process.argv.slice(2);
const PCI = '/sys/bus/pci/devices';
const RECORDS = '/run/penstock';
const UID = 1000;

interface Ran {
  readonly code: number;
  readonly json: Record<string, never> & {
    readonly error?: { readonly code: string; readonly message: string };
    readonly functions?: readonly Record<string, unknown>[];
  };
  readonly stderr: string;
}

/** In this process: each start of node takes seconds in a guest. */
async function penstock(...words: string[]): Promise<Ran> {
  let [code, stdout, stderr] = [0, '', ''];
  const { write: toStdout } = process.stdout;
  const { write: toStderr } = process.stderr;
  process.stdout.write = (text: string | Uint8Array) => ((stdout += String(text)), true);
  process.stderr.write = (text: string | Uint8Array) => ((stderr += String(text)), true);
  try {
    const program = await buildProgram(words, (exitCode) => (code = exitCode));
    await program.parseAsync([...words, '--json'], { from: 'user' });
  } catch (thrown) {
    code = printFailure(thrown, true);
  } finally {
    process.stdout.write = toStdout;
    process.stderr.write = toStderr;
  }
  return { code, json: JSON.parse(stdout) as Ran['json'], stderr };
}

async function failed(...words: string[]) {
  const { code, json } = await penstock(...words);
  return { code, error: json.error?.code, message: json.error?.message };
}

function linkOf(address: string, name: string): string {
  const path = `${PCI}/${address}/${name}`;
  return existsSync(path) ? basename(readlinkSync(path)) : '';
}

const driverOf = (address: string): string => linkOf(address, 'driver');
const nodeOf = (address: string): string => `/dev/vfio/${linkOf(address, 'iommu_group')}`;
async function statusOf(address: string): Promise<Record<string, unknown> | undefined> {
  const { json } = await penstock('status');
  return json.functions?.find((entry) => entry['address'] === address);
}

/** Node of the disk that the kernel's driver makes of a controller. */
function diskOf(address: string): Promise<string> {
  return until(() => {
    const folder = `${PCI}/${address}/nvme`;
    const [controller = ''] = existsSync(folder) ? readdirSync(folder) : [];
    const names = controller === '' ? [] : readdirSync(`${folder}/${controller}`);
    const disk = names.find((name) => /^nvme\d+n\d+$/.test(name));
    return disk !== undefined && existsSync(`/dev/${disk}`) ? `/dev/${disk}` : undefined;
  }, `the disk of ${address}`);
}

/** Ends when the caller ends it; resolves when it has the path open. */
async function holder(path: string, command: string): Promise<ChildProcess> {
  const child = spawn('/bin/sh', ['-c', command], { stdio: 'ignore' });
  const has = (fd: string): boolean => {
    const link = `/proc/${child.pid}/fd/${fd}`;
    return existsSync(link) && readlinkSync(link) === path;
  };
  await until(() => readdirSync(`/proc/${child.pid}/fd`).some(has), `a process with ${path}`);
  return child;
}

async function end(child: ChildProcess): Promise<void> {
  child.kill('SIGKILL');
  await new Promise((resolve) => child.once('exit', resolve));
}

async function bindFree(): Promise<void> {
  await diskOf(free);
  const dry = await penstock('bind', free, '--dry-run');
  report('dryRun', { code: dry.code, driver: driverOf(free) });
  const short = free.replace(/^0000:/, '');
  const { code, stderr } = await penstock('bind', short, '--user', String(UID));
  const node = nodeOf(free);
  report('bind', {
    code,
    driver: driverOf(free),
    uid: statSync(node).uid,
    inGroup: statSync(node).isCharacterDevice(),
  });
  report('notes', stderr);
  report('status of the bound', await statusOf(free));
}

async function refuseSwap(): Promise<void> {
  const disk = await diskOf(swap);
  execFileSync('/bin/busybox', ['mkswap', disk], { stdio: 'ignore' });
  execFileSync('/bin/busybox', ['swapon', disk]);
  // By the kernel's name this time.
  const refused = await failed('bind', disk.replace('/dev/', ''));
  const forced = (await failed('bind', swap, '--force')).code;
  report('swap', { ...refused, forced, driver: driverOf(swap) });
  execFileSync('/bin/busybox', ['swapoff', disk]);
}

async function refuseClaimed(): Promise<void> {
  const disk = await diskOf(swap);
  const program = [
    'const fs = require("node:fs");',
    `fs.openSync(${JSON.stringify(disk)}, fs.constants.O_RDONLY | fs.constants.O_EXCL);`,
    'setTimeout(() => {}, 1e6);',
  ].join(' ');
  const child = await holder(disk, `exec '${process.execPath}' -e '${program}'`);
  report('claimed', await failed('bind', swap));
  await end(child);
}

async function refuseNic(): Promise<void> {
  const name = await until(() => {
    const folder = `${PCI}/${nic}/net`;
    return existsSync(folder) ? readdirSync(folder)[0] : undefined;
  }, 'the interface of the NIC');
  execFileSync('/bin/busybox', ['ip', 'address', 'add', '192.0.2.1/24', 'dev', name]);
  execFileSync('/bin/busybox', ['ip', 'link', 'set', name, 'up']);
  await until(() => readFileSync('/proc/net/route', 'utf8').includes(name), 'its route');
  const refused = await failed('bind', name);
  const forced = (await penstock('bind', name, '--force')).code;
  const driver = driverOf(nic);
  await penstock('unbind', nic);
  report('nic', { ...refused, forced, driver, after: driverOf(nic) });
}

async function refuseGroup(): Promise<void> {
  const [first = ''] = pair;
  const refused = await failed('bind', first);
  const both = (await penstock('bind', ...pair)).code;
  const drivers = pair.map(driverOf);
  await penstock('unbind', ...pair);
  report('group', { ...refused, both, drivers });
}

async function refuseUnbind(): Promise<void> {
  const node = nodeOf(free);
  const child = await holder(node, `exec sleep 1000 <>${node}`);
  const refused = await failed('unbind', free);
  await end(child);
  const { code } = await penstock('unbind', free);
  report('in use', { ...refused, after: code });
}

/** A crash after each step of binding, by the state that it leaves. */
async function repairCrashes(): Promise<void> {
  const steps = [
    () => undefined,
    () => writeFileSync(`${PCI}/${free}/driver_override`, 'vfio-pci'),
    () => writeFileSync(`${PCI}/${free}/driver/unbind`, free),
    () => writeFileSync('/sys/bus/pci/drivers_probe', free),
  ];
  const [vendor, device] = ['vendor', 'device'].map((name) =>
    Number(readFileSync(`${PCI}/${free}/${name}`, 'utf8')),
  );
  const schema = 'penstock.bind-record/1';
  const was = { originalDriver: 'nvme', originalOverride: '' };
  const record = {
    schema,
    address: free,
    vendor,
    device,
    driver: 'vfio-pci',
    ...was,
    since: 'then',
  };
  const crashes: object[] = [];
  for (let count = 1; count <= steps.length; count++) {
    writeFileSync(await diskOf(free), `kept ${count}`.padEnd(512, '.'));
    mkdirSync(RECORDS, { recursive: true });
    writeFileSync(`${RECORDS}/bind-${free}.json`, JSON.stringify(record));
    for (const step of steps.slice(0, count)) step();
    const { state } = (await statusOf(free))?.['bound'] as { state: string };
    const { code } = await penstock('unbind', '--all');
    const text = readFileSync(await diskOf(free), 'utf8').slice(0, 6);
    crashes.push({ state, code, driver: driverOf(free), served: text === `kept ${count}` });
  }
  report('crashes', crashes);
  report('records', readdirSync(RECORDS));
}

async function hugepages(): Promise<void> {
  const some = await penstock('hugepages', '8MiB');
  const { code: tooMany, error } = await failed('hugepages', '260');
  const { reserved } = some.json as unknown as { reserved: number };
  report('hugepages', { code: some.code, reserved, tooMany, error });
}

await bindFree();
await refuseSwap();
await refuseClaimed();
await refuseNic();
await refuseGroup();
await refuseUnbind();
await repairCrashes();
await hugepages();
