// `penstock nvme …`: a controller's own words, in nvme-cli's columns and JSON. Each command opens
// the controller, asks, prints and closes.

import { type Command, InvalidArgumentError, Option } from 'commander';
import { type NvmeAdmin, openNvmeAdmin, parseController } from '../drivers/nvme/index.js';
import { asPenstockError, Exit, printJson, printNote, printText } from './output.js';
import { idCtrlJson, idCtrlText } from './nvme-id-ctrl.js';
import { idNsJson, idNsText } from './nvme-id-ns.js';
import {
  listJson,
  listKernelNamespaces,
  listOpenNamespaces,
  listText,
  type NvmeListEntry,
  otherControllers,
} from './nvme-list.js';
import {
  errorLogJson,
  errorLogText,
  smartLogJson,
  smartLogText,
  smartRemarks,
} from './nvme-logs.js';
import { REGISTER_BYTES, showRegsJson, showRegsText } from './nvme-regs.js';
import { type NvmeTarget, parseTarget } from './nvme-target.js';
import type { Finish } from './program.js';
import { fileRoot, type Root } from '../pci/index.js';

const ALL_NAMESPACES = 0xffffffff;
const LOG_ERROR = 0x01;
const LOG_SMART = 0x02;
const ERROR_ENTRY_BYTES = 64;
const SMART_BYTES = 512;
/** A log page is read in parts of at most this. */
const PART_BYTES = 4096;
const LPA_EXTENDED = 1 << 2;

/** What the commands work on; tests give others. */
export interface NvmeSurroundings {
  readonly open: (uri: string) => Promise<NvmeAdmin>;
  readonly root: Root;
}

interface PrintOptions {
  json?: boolean;
  rawBinary?: boolean;
  outputFormat: 'normal' | 'json' | 'binary';
}

interface NvmeOptions extends PrintOptions {
  namespaceId?: number;
  logEntries: number;
  humanReadable?: boolean;
}

/** A page in its three forms. */
interface Printed {
  readonly page: Uint8Array;
  readonly json: (page: Uint8Array) => object;
  readonly text: (page: Uint8Array) => string;
}

type Ask = (admin: NvmeAdmin, target: NvmeTarget, options: NvmeOptions) => Promise<Printed>;

export function configure(command: Command, finish: Finish): void {
  configureNvme(command, finish, { open: openNvmeAdmin, root: fileRoot() });
}

export function configureNvme(
  command: Command,
  finish: Finish,
  surroundings: NvmeSurroundings,
): void {
  const { open } = surroundings;
  withFormat(command.command('list'), ['normal', 'json'])
    .description('namespaces of all drives; those of the kernel are not opened')
    .action(async (_: object, list: Command) => {
      await printList(surroundings, list.optsWithGlobals());
      finish(Exit.OK);
    });
  for (const [name, { summary, ask, options = [] }] of Object.entries(PAGES)) {
    const page = withFormat(command.command(name), ['normal', 'json', 'binary'])
      .description(summary)
      .argument('<uri>', 'nvme:0000:01:00.0/1, or the PCI address alone')
      .option('-b, --raw-binary', 'print the page as it is')
      .action(async (word: string, _: object, self: Command) => {
        const target = parseTarget(word);
        const values: NvmeOptions = self.optsWithGlobals();
        const printed = await withAdmin(open, target, (admin) => ask(admin, target, values));
        printPage(name, printed, values);
        finish(Exit.OK);
      });
    for (const option of options) page.addOption(option);
  }
  withFormat(command.command('reset'), ['normal', 'json'])
    .description('reset the controller')
    .argument('<uri>', 'nvme:0000:01:00.0, or the PCI address alone')
    .action(async (word: string, _: object, self: Command) => {
      const target = parseTarget(word);
      await withAdmin(open, target, (admin) => admin.reset());
      if (wantsJson(self.optsWithGlobals())) {
        printJson('nvme-reset', { device: target.name, reset: true });
      }
      finish(Exit.OK);
    });
}

const NAMESPACE_OPTION = new Option('-n, --namespace-id <nsid>', 'the namespace').argParser(
  parseNumber,
);

const PAGES: Readonly<Record<string, { summary: string; ask: Ask; options?: Option[] }>> = {
  'id-ctrl': { summary: 'what the controller says of itself', ask: askController },
  'id-ns': {
    summary: 'what the controller says of a namespace',
    ask: askNamespace,
    options: [NAMESPACE_OPTION],
  },
  'smart-log': {
    summary: 'health: temperature, wear, errors',
    ask: askSmartLog,
    options: [NAMESPACE_OPTION],
  },
  'error-log': {
    summary: 'the last errors, the newest first',
    ask: askErrorLog,
    options: [
      new Option('-e, --log-entries <count>', 'entries to read').argParser(parseNumber).default(64),
    ],
  },
  'show-regs': {
    summary: 'the registers in BAR 0',
    ask: askRegisters,
    options: [new Option('-H, --human-readable', 'the bits of each register, too')],
  },
};

async function askController(admin: NvmeAdmin): Promise<Printed> {
  return { page: await admin.identifyController(), json: idCtrlJson, text: idCtrlText };
}

async function askNamespace(
  admin: NvmeAdmin,
  target: NvmeTarget,
  options: NvmeOptions,
): Promise<Printed> {
  const nsid = options.namespaceId ?? target.nsid ?? 1;
  const page = await admin.identifyNamespace(nsid);
  return { page, json: idNsJson, text: () => idNsText(page, nsid) };
}

async function askSmartLog(
  admin: NvmeAdmin,
  target: NvmeTarget,
  options: NvmeOptions,
): Promise<Printed> {
  // A namespace in the URI does not count: few drives have a log per namespace.
  const nsid = options.namespaceId ?? ALL_NAMESPACES;
  const page = await admin.getLogPage({ lid: LOG_SMART, nsid, bytes: SMART_BYTES });
  for (const remark of smartRemarks(page)) printNote(`${target.name}: ${remark}`);
  return { page, json: smartLogJson, text: () => smartLogText(page, target.name, nsid) };
}

async function askErrorLog(
  admin: NvmeAdmin,
  target: NvmeTarget,
  options: NvmeOptions,
): Promise<Printed> {
  const { elpe, lpa } = parseController(await admin.identifyController());
  const wanted = Math.min(options.logEntries, elpe + 1) * ERROR_ENTRY_BYTES;
  // Only a controller that knows offsets gives more than one part.
  const page = new Uint8Array((lpa & LPA_EXTENDED) !== 0 ? wanted : Math.min(wanted, PART_BYTES));
  for (let offset = 0; offset < page.length; offset += PART_BYTES) {
    const bytes = Math.min(PART_BYTES, page.length - offset);
    const part = { lid: LOG_ERROR, nsid: ALL_NAMESPACES, bytes, offset };
    page.set(await admin.getLogPage(part), offset);
  }
  return { page, json: errorLogJson, text: () => errorLogText(page, target.name) };
}

async function askRegisters(
  admin: NvmeAdmin,
  _target: NvmeTarget,
  options: NvmeOptions,
): Promise<Printed> {
  const dump = admin.registers();
  return {
    page: dump.subarray(0, REGISTER_BYTES),
    json: showRegsJson,
    text: (page) => showRegsText(page, options.humanReadable === true),
  };
}

async function withAdmin<T>(
  open: NvmeSurroundings['open'],
  target: NvmeTarget,
  run: (admin: NvmeAdmin) => Promise<T>,
): Promise<T> {
  const admin = await open(target.uri);
  try {
    return await run(admin);
  } finally {
    await admin.close();
  }
}

async function printList(surroundings: NvmeSurroundings, options: PrintOptions): Promise<void> {
  const { open, root } = surroundings;
  const entries: NvmeListEntry[] = listKernelNamespaces(root);
  for (const { address, driver } of otherControllers(root)) {
    if (driver !== 'vfio-pci') {
      const holder = driver === '' ? 'no driver has it' : `${driver} has it`;
      printNote(`${address}: not listed, since ${holder}; vfio-pci makes it penstock's`);
      continue;
    }
    try {
      const target = parseTarget(address);
      const list = (admin: NvmeAdmin) => listOpenNamespaces(admin, driver);
      entries.push(...(await withAdmin(open, target, list)));
    } catch (thrown) {
      // One drive that cannot be asked is no reason not to list the others.
      const { message, hint } = asPenstockError(thrown);
      printNote(`${address}: not listed: ${message} ${hint}`.trimEnd());
    }
  }
  if (wantsJson(options)) printJson('nvme-list', listJson(entries));
  else printText(listText(entries));
}

function printPage(name: string, printed: Printed, options: PrintOptions): void {
  const { page, json, text } = printed;
  if (options.rawBinary === true || options.outputFormat === 'binary') process.stdout.write(page);
  else if (wantsJson(options)) printJson(`nvme-${name}`, json(page));
  else printText(text(page));
}

function wantsJson(options: PrintOptions): boolean {
  return options.json === true || options.outputFormat === 'json';
}

function withFormat(command: Command, formats: readonly string[]): Command {
  return command
    .option('--json', 'print JSON alone on stdout')
    .addOption(
      new Option('-o, --output-format <format>', "as nvme-cli's")
        .choices(formats)
        .default('normal'),
    );
}

/** Decimal, or hexadecimal with 0x, up to 2^32 - 1. */
function parseNumber(text: string): number {
  const value = /^(?:0x[0-9a-f]+|\d+)$/i.test(text) ? Number(text) : NaN;
  if (!(value >= 1 && value <= ALL_NAMESPACES)) {
    throw new InvalidArgumentError('a number from 1 to 0xffffffff is wanted');
  }
  return value;
}
