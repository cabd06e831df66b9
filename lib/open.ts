// URI → device. Drivers are loaded when first asked for.

import { threadId } from 'node:worker_threads';
import { PenstockError } from './errors.js';
import { BlockDevice, type Backend, type DeviceHandle, type DriverModule } from './hpdi/index.js';
import {
  checkKeys,
  checkScheme,
  formatUri,
  nestedUri,
  parseUri,
  splitWrappers,
  type ParsedUri,
  type Wrapper,
} from './uri.js';

/** `attached` names an attachment, each differently; '' is the device that was opened. */
type Wrap = (inner: Backend, options: ReadonlyMap<string, string>, attached: string) => Backend;

const DRIVERS: Readonly<Record<string, () => Promise<DriverModule>>> = {
  file: async () => (await import('./drivers/file/index.js')).driver,
  idc: async () => (await import('./idc/index.js')).driver,
  null: async () => (await import('./drivers/null/index.js')).driver,
  nvme: async () => (await import('./drivers/nvme/index.js')).driver,
  ram: async () => (await import('./drivers/ram/index.js')).driver,
};

interface WrapModule {
  readonly keys: readonly string[];
  /** Throws for values that the wrapper could not use. */
  readonly check: (options: ReadonlyMap<string, string>) => void;
  readonly wrap: Wrap;
}

const WRAPS: Readonly<Record<string, () => Promise<WrapModule>>> = {
  fault: async () => {
    const { checkFault, FAULT_KEYS, wrapFault } = await import('./drivers/fault/index.js');
    return { keys: Object.keys(FAULT_KEYS), check: checkFault, wrap: wrapFault };
  },
  trace: async () => {
    const { checkTrace, TRACE_KEYS, wrapTrace } = await import('./drivers/trace/index.js');
    return { keys: Object.keys(TRACE_KEYS), check: checkTrace, wrap: wrapTrace };
  },
};

interface Wrapping {
  readonly wrap: Wrap;
  readonly options: ReadonlyMap<string, string>;
}

/** Attachments that this environment made so far. */
let attachments = 0;

/** Schemes that `open` knows. */
export const SCHEMES: readonly string[] = Object.freeze([...Object.keys(DRIVERS), 'dedup'].sort());

/**
 * Opens a device: `ram:1GiB`, `null:1GiB`, `file:/path?direct=1`, with wrappers as keys
 * (`fault.*`, `trace.*`). Errors: UNKNOWN_SCHEME, UNKNOWN_KEY, and the driver's own.
 */
export async function open(uri: string): Promise<BlockDevice> {
  const parsed = parseUri(uri);
  if (parsed.scheme === 'dedup') return openDedup(parsed, uri);
  const { module, inner, wrappers } = await resolve(uri);
  const backend = await module.open(inner.path, inner.query, uri, inner.transport);
  return new BlockDevice(await wrapAll(backend, wrappers, ''));
}

/** Attaches to a device that another thread of this process opened: own queues, same memory. */
export async function attach(handle: DeviceHandle): Promise<BlockDevice> {
  const { module, wrappers } = await resolve(handle.uri);
  const home = { index: handle.liveness, serial: handle.livenessSerial };
  const name = `${threadId}.${attachments++}`;
  const backend = await wrapAll(await module.attach(handle), wrappers, name);
  return new BlockDevice(backend, home);
}

/** `dedup:` takes the rest of its URI as its data device, wrappers included. */
async function openDedup(parsed: ParsedUri, uri: string): Promise<BlockDevice> {
  checkParts({ ...parsed, volume: '' }, []);
  const { DEDUP_KEYS, openVolume } = await import('./dedup/index.js');
  const { inner, own } = nestedUri(parsed);
  const known = Object.keys(DEDUP_KEYS).map((key) => key.slice('dedup.'.length));
  checkKeys({ scheme: 'dedup', query: own }, known, 'dedup.');
  const data = { ...inner, volume: '' };
  const text = formatUri(data);
  return new BlockDevice(await openVolume(text, open, own, parsed.volume, uri));
}

async function resolve(
  uri: string,
): Promise<{ module: DriverModule; inner: ParsedUri; wrappers: Wrapping[] }> {
  const parsed = parseUri(uri);
  const { inner, wrappers } = splitWrappers(parsed);
  checkScheme(inner.scheme, SCHEMES);
  assertNotOfVolume(parsed);
  const load = DRIVERS[inner.scheme]!;
  const module = await load();
  checkParts(inner, module.transports ?? []);
  const dotted = [...inner.query.keys()].some((key) => key.includes('.'));
  checkKeys(inner, Object.keys(module.keys), '', dotted ? await dottedKeys() : []);
  return { module, inner, wrappers: await Promise.all(wrappers.map(resolveWrapper)) };
}

/** Throws UNKNOWN_KEY for a key of `dedup:`: that scheme was forgotten. */
function assertNotOfVolume(uri: ParsedUri): void {
  const key = [...uri.query.keys()].find((each) => each.startsWith('dedup.'));
  if (key === undefined) return;
  const volume = uri.volume === '' ? 'NAME' : uri.volume;
  throw new PenstockError('UNKNOWN_KEY', `'${key}' is a key of dedup:, not of ${uri.scheme}:`, {
    hint: `for a volume of its pool write dedup:${formatUri({ ...uri, volume })}`,
    exitCode: 2,
  });
}

/** Throws UNKNOWN_TRANSPORT for a transport that the scheme does not have, or a volume. */
function checkParts(
  { scheme, transport, volume, path }: ParsedUri,
  known: readonly string[],
): void {
  if (volume === '' && (transport === '' || known.includes(transport))) return;
  const device = `${scheme}:${path}`;
  if (volume !== '') {
    throw new PenstockError('UNKNOWN_TRANSPORT', `${scheme}: has no volume '${volume}'`, {
      hint: `write ${device}, or dedup:${device}#${volume} for a volume of its pool`,
      exitCode: 2,
    });
  }
  const forms = known.map((name) => `${scheme}+${name}:`).join(' ');
  throw new PenstockError('UNKNOWN_TRANSPORT', `${scheme}: has no transport '${transport}'`, {
    hint: `write ${device}${forms === '' ? '' : ` or ${forms}…`}`,
    exitCode: 2,
  });
}

/** Checks a wrapper's keys and values: before the device is opened, which may make a file. */
async function resolveWrapper({ name, options }: Wrapper): Promise<Wrapping> {
  const { keys, check, wrap } = await WRAPS[name]!();
  checkKeys({ scheme: name, query: options }, keys, `${name}.`);
  check(options);
  return { wrap, options };
}

/** Keys of every wrapper and of `dedup:` as they stand in a URI. */
async function dottedKeys(): Promise<string[]> {
  const lists = Object.entries(WRAPS).map(async ([name, load]) =>
    (await load()).keys.map((key) => `${name}.${key}`),
  );
  const { DEDUP_KEYS } = await import('./dedup/index.js');
  return [...(await Promise.all(lists)).flat(), ...Object.keys(DEDUP_KEYS)];
}

/** Wraps from the inside out; on failure what was opened is closed again. */
async function wrapAll(
  backend: Backend,
  wrappers: readonly Wrapping[],
  attached: string,
): Promise<Backend> {
  let outer = backend;
  try {
    for (const { wrap, options } of wrappers) outer = wrap(outer, options, attached);
    return outer;
  } catch (error) {
    await outer.close();
    throw error;
  }
}
