// A controller's namespaces: which there are, what they are, and where queues read of their size.

import { PenstockError } from '../../errors.js';
import { identify } from './admin-commands.js';
import type { BringUp } from './bring-up.js';
import { Cns } from './commands.js';
import { namespaceFacts, type ControllerFacts, type NamespaceFacts } from './facts.js';
import { NAMESPACES_PER_PAGE, parseNamespaceList } from './identify-lists.js';
import { NAMESPACES_MAX, NamespaceWord } from './pairs.js';
import type { Task } from './steps.js';

/** NVM Express 1.1: from it on there is a list of active namespaces. */
const VERSION_1_1 = 0x10100;

export interface NamespaceEntry {
  readonly nsid: number;
  /** Row in the pairs' table, its own for good. */
  readonly row: number;
  /** Null while it is not there. */
  facts: NamespaceFacts | null;
  /** Why it cannot be used, where it is there and cannot. */
  problem: PenstockError | null;
}

export class Namespaces {
  private readonly entries = new Map<number, NamespaceEntry>();

  get(nsid: number): NamespaceEntry | undefined {
    return this.entries.get(nsid);
  }

  /** Those that are there, by number. */
  list(): NamespaceEntry[] {
    return [...this.entries.values()]
      .filter(({ facts, problem }) => facts !== null || problem !== null)
      .sort((a, b) => a.nsid - b.nsid);
  }

  /** Reads all anew; the numbers of those that appeared, went, or changed. */
  *refresh(up: BringUp, controller: ControllerFacts): Task<number[]> {
    const active = yield* activeNamespaces(up, controller);
    const changed: number[] = [];
    for (const nsid of active) {
      if (yield* this.read(up, controller, nsid)) changed.push(nsid);
    }
    for (const entry of this.entries.values()) {
      if (active.includes(entry.nsid) || (entry.facts === null && entry.problem === null)) continue;
      entry.facts = null;
      entry.problem = null;
      this.store(up, entry);
      changed.push(entry.nsid);
    }
    return changed;
  }

  private *read(up: BringUp, controller: ControllerFacts, nsid: number): Task<boolean> {
    const entry = this.entryOf(nsid);
    if (entry === null) return false;
    const before = JSON.stringify(entry.facts);
    const { adminTimeoutMs } = up.settings;
    const page = yield* up.withPage(4096, function* (address, bytes) {
      yield* up.admin.demand(identify(Cns.NAMESPACE, nsid, address), adminTimeoutMs);
      return bytes.slice();
    });
    entry.problem = null;
    entry.facts = null;
    try {
      entry.facts = namespaceFacts(nsid, page, controller);
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
      entry.problem = error;
    }
    this.store(up, entry);
    return JSON.stringify(entry.facts) !== before;
  }

  /** The entry of a namespace; null when the table is full. */
  private entryOf(nsid: number): NamespaceEntry | null {
    const known = this.entries.get(nsid);
    if (known !== undefined) return known;
    if (this.entries.size >= NAMESPACES_MAX) return null;
    const entry = { nsid, row: this.entries.size, facts: null, problem: null };
    this.entries.set(nsid, entry);
    return entry;
  }

  private store(up: BringUp, entry: NamespaceEntry): void {
    const { namespaces } = up.table;
    const at = entry.row * NamespaceWord.words;
    const blocks = entry.facts?.blocks ?? 0;
    namespaces[at + NamespaceWord.nsid] = entry.nsid;
    namespaces[at + NamespaceWord.blocksLo] = blocks % 2 ** 32;
    namespaces[at + NamespaceWord.blocksHi] = Math.floor(blocks / 2 ** 32);
    namespaces[at + NamespaceWord.removed] = entry.facts === null ? 1 : 0;
  }
}

/** Numbers of the active namespaces, ascending, at most NAMESPACES_MAX. */
function* activeNamespaces(up: BringUp, controller: ControllerFacts): Task<number[]> {
  if (controller.version < VERSION_1_1 || up.quirks.has('identify-two-pages')) {
    const count = Math.min(controller.namespacesMax, NAMESPACES_MAX);
    return Array.from({ length: count }, (_, index) => index + 1);
  }
  const { adminTimeoutMs } = up.settings;
  const found: number[] = [];
  let from = 0;
  while (found.length < NAMESPACES_MAX) {
    const list: number[] = yield* up.withPage(4096, function* (address, bytes) {
      yield* up.admin.demand(identify(Cns.ACTIVE_NAMESPACES, from, address), adminTimeoutMs);
      return parseNamespaceList(bytes, from);
    });
    found.push(...list.slice(0, NAMESPACES_MAX - found.length));
    if (list.length < NAMESPACES_PER_PAGE) break;
    from = list.at(-1)!; // the list ascends, or it was cut: this ends
  }
  return found;
}
