// Device URIs: `scheme[+transport]:path[?key=value&…][#volume]` (floor 0).
//
// Invariants:
// 1. formatUri(parseUri(text)) parses to the same parts; keys keep their order.
// 2. Path, keys, values and volume are decoded here, once. A scheme that takes another URI as its
//    path (NESTING) keeps that path as it was written: nestedUri parses it.
// 3. Wrappers are prefixed keys (`fault.seed`); they belong to the wrapper, never to the driver.

import { PenstockError } from './errors.js';
import { nearest } from './units.js';

export interface ParsedUri {
  readonly scheme: string;
  /** What follows `+`: `vfio-user`, `vhost-user`; '' for the scheme's own transport. */
  readonly transport: string;
  readonly path: string;
  readonly query: ReadonlyMap<string, string>;
  /** What follows `#`; '' when nothing does. */
  readonly volume: string;
  /** The URI as formatUri writes it. */
  readonly text: string;
}

export interface Wrapper {
  readonly name: string;
  /** Options without their prefix: `seed` of `fault.seed=7`. */
  readonly options: ReadonlyMap<string, string>;
}

/** Wrappers that any URI may carry. */
export const WRAPPERS: readonly string[] = Object.freeze(['fault', 'trace']);

/** Schemes whose path is itself a URI without query and volume. */
const NESTING: readonly string[] = ['dedup'];

const HEAD = /^([a-z][a-z0-9-]*)(?:\+([a-z][a-z0-9-]*))?:/;

/** Parts of a URI. Throws BAD_URI (usage). */
export function parseUri(text: string): ParsedUri {
  const head = HEAD.exec(text);
  if (head === null) {
    const looksLikePath = /^[./~]/.test(text);
    throw bad(
      text,
      'does not begin with a scheme',
      looksLikePath ? `Write file:${text} for a file.` : 'Write it like file:/path or ram:1GiB.',
    );
  }
  const scheme = head[1] ?? '';
  let rest = text.slice(head[0].length);
  let volume = '';
  const hash = rest.indexOf('#');
  if (hash >= 0) {
    volume = decode(text, rest.slice(hash + 1));
    rest = rest.slice(0, hash);
  }
  let query = new Map<string, string>();
  const mark = rest.indexOf('?');
  if (mark >= 0) {
    query = parseQuery(text, rest.slice(mark + 1));
    rest = rest.slice(0, mark);
  }
  const path = NESTING.includes(scheme) ? rest : decode(text, rest);
  return withText({ scheme, transport: head[2] ?? '', path, query, volume });
}

/** The URI's text: characters that would end a part, blanks and non-ASCII are percent-encoded. */
export function formatUri(uri: Omit<ParsedUri, 'text'>): string {
  const transport = uri.transport === '' ? '' : `+${uri.transport}`;
  const path = NESTING.includes(uri.scheme) ? uri.path : encode(uri.path, '?#');
  const keys: string[] = [];
  for (const [key, value] of uri.query) keys.push(`${encode(key, '=&#')}=${encode(value, '&#')}`);
  const query = keys.length === 0 ? '' : `?${keys.join('&')}`;
  const volume = uri.volume === '' ? '' : `#${encode(uri.volume, '')}`;
  return `${uri.scheme}${transport}:${path}${query}${volume}`;
}

/**
 * Takes the wrappers' keys out of a URI. `wrappers` stand in order of first appearance: the first
 * is nearest to the device, the last is the outermost.
 */
export function splitWrappers(
  uri: ParsedUri,
  names: readonly string[] = WRAPPERS,
): { inner: ParsedUri; wrappers: Wrapper[] } {
  const query = new Map<string, string>();
  const byName = new Map<string, Map<string, string>>();
  for (const [key, value] of uri.query) {
    const dot = key.indexOf('.');
    const name = dot < 0 ? '' : key.slice(0, dot);
    if (!names.includes(name)) {
      query.set(key, value);
      continue;
    }
    const options = byName.get(name) ?? new Map<string, string>();
    byName.set(name, options.set(key.slice(dot + 1), value));
  }
  const wrappers = [...byName].map(([name, options]) => ({ name, options }));
  return { inner: withText({ ...uri, query }), wrappers };
}

/**
 * For a nesting scheme (`dedup:file:/pool.img?direct=1&dedup.llrrm=…#vm1`): the data device with
 * the keys that are not `scheme.*`, and the scheme's own keys without their prefix.
 */
export function nestedUri(uri: ParsedUri): { inner: ParsedUri; own: ReadonlyMap<string, string> } {
  const prefix = `${uri.scheme}.`;
  const own = new Map<string, string>();
  const query = new Map<string, string>();
  for (const [key, value] of uri.query) {
    if (key.startsWith(prefix)) own.set(key.slice(prefix.length), value);
    else query.set(key, value);
  }
  const path = parseUri(uri.path);
  return { inner: withText({ ...path, query }), own };
}

/**
 * Throws UNKNOWN_KEY (usage) for the first key that is not known; the message names the nearest, of
 * `alike` too: keys that are known elsewhere (a wrapper's, for a misspelt wrapper).
 */
export function checkKeys(
  uri: Pick<ParsedUri, 'scheme' | 'query'>,
  known: Iterable<string>,
  prefix = '',
  alike: Iterable<string> = [],
): void {
  const names = [...known];
  for (const key of uri.query.keys()) {
    if (names.includes(key)) continue;
    const near = nearest(key, [...names, ...alike]);
    throw new PenstockError(
      'UNKNOWN_KEY',
      `'${prefix}${key}' is not a key of ${uri.scheme}:` +
        (near === '' ? '' : `; the nearest is '${prefix}${near}'`),
      {
        hint:
          names.length === 0
            ? `${uri.scheme}: takes no keys.`
            : `Its keys are ${names.map((name) => prefix + name).join(', ')}.`,
        exitCode: 2,
      },
    );
  }
}

/** Throws UNKNOWN_SCHEME (usage) when `scheme` is not known; the message names the nearest. */
export function checkScheme(scheme: string, known: Iterable<string>): void {
  const names = [...known];
  if (names.includes(scheme)) return;
  const near = nearest(scheme, names);
  throw new PenstockError(
    'UNKNOWN_SCHEME',
    `'${scheme}:' is not a known scheme` + (near === '' ? '' : `; the nearest is '${near}:'`),
    { hint: `Known schemes: ${names.map((name) => `${name}:`).join(' ')}.`, exitCode: 2 },
  );
}

function withText(uri: Omit<ParsedUri, 'text'>): ParsedUri {
  const { scheme, transport, path, query, volume } = uri;
  return { scheme, transport, path, query, volume, text: formatUri(uri) };
}

function parseQuery(text: string, query: string): Map<string, string> {
  const keys = new Map<string, string>();
  for (const part of query.split('&')) {
    if (part === '') continue;
    const equals = part.indexOf('=');
    if (equals < 0) throw bad(text, `has a key without a value, '${part}'`, `Write ${part}=1.`);
    const key = decode(text, part.slice(0, equals));
    if (key === '') throw bad(text, 'has a value without a key', 'Write key=value.');
    if (keys.has(key)) throw bad(text, `has the key '${key}' twice`, 'Give each key once.');
    keys.set(key, decode(text, part.slice(equals + 1)));
  }
  return keys;
}

/** Encodes `%`, blanks, control characters, non-ASCII and whatever stands in `reserved`. */
function encode(text: string, reserved: string): string {
  let encoded = '';
  for (const character of text) {
    const plain = character > ' ' && character < '\x7f' && character !== '%';
    encoded += plain && !reserved.includes(character) ? character : percent(character);
  }
  return encoded;
}

/** encodeURIComponent leaves some reserved characters alone; one byte is always %XX. */
function percent(character: string): string {
  const code = character.charCodeAt(0);
  if (code >= 0x80) return encodeURIComponent(character);
  return `%${code.toString(16).toUpperCase().padStart(2, '0')}`;
}

function decode(text: string, part: string): string {
  try {
    return decodeURIComponent(part);
  } catch (cause) {
    throw new PenstockError('BAD_URI', `the URI '${text}' has a malformed %-escape in '${part}'`, {
      hint: 'A literal % is written %25.',
      cause,
      exitCode: 2,
    });
  }
}

function bad(text: string, what: string, hint: string): PenstockError {
  return new PenstockError('BAD_URI', `the URI '${text}' ${what}`, { hint, exitCode: 2 });
}
