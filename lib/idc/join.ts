// How a process becomes a domain: once, and before its first allocation.

import { PenstockError } from '../errors.js';
import type { MemoryOptions } from '../memory/index.js';
import { Domain } from './domain.js';
import { isName } from './fields.js';
import { HubSession, type Session, type SessionHome, type Sharing } from './hub-session.js';

const JOIN_MS = 5000;

export interface DomainOptions {
  /** Unique among the members: letters, digits, '.', '_' and '-', at most 64. */
  name: string;
  memory?: {
    /** Page size of the shared memory, as AddressSpace.create has it. */
    pageBytes?: number | 'auto';
  };
  /** Who may map this domain's memory, and so have channels with it. */
  share?: Sharing;
  /** How long the hub may take to answer (5 s). */
  timeoutMs?: number;
  /** Whether membership alone keeps the process alive (default false). */
  keepAlive?: boolean;
}

let joined: Domain | null = null;

/** The domain of this process and thread, if it joined a hub. */
export function currentDomain(): Domain | null {
  return joined?.isClosed === true ? null : joined;
}

/**
 * Joins a hub. Errors: NO_HUB, HUB_SILENT, PERMISSION_DENIED, BAD_NAME, NAME_TAKEN, HUB_FULL,
 * DOMAIN_JOINED (this process has joined one), ADDRESS_SPACE_IN_USE (it has memory already).
 */
export async function joinDomain(hub: string, options: DomainOptions): Promise<Domain> {
  const { share = {}, keepAlive = false, memory = {} } = options;
  return startDomain(hub, options, { pageBytes: memory.pageBytes ?? 'auto' }, (home) => {
    return new HubSession(hub, options.name, share, home, keepAlive);
  });
}

/** Makes this process a domain, by a session of whatever kind. @internal */
export async function startDomain(
  hub: string,
  options: { name: string; timeoutMs?: number },
  memory: MemoryOptions,
  connect: (home: SessionHome) => Session,
): Promise<Domain> {
  if (!isName(options.name)) {
    throw new PenstockError('BAD_NAME', `'${options.name}' is no name of a domain`, {
      hint: 'letters, digits, dot, underscore and hyphen, at most 64',
      exitCode: 2,
    });
  }
  if (joined !== null) {
    throw new PenstockError('DOMAIN_JOINED', `this process is ${joined.name} of ${joined.hub}`, {
      hint: 'a process joins one hub, once',
    });
  }
  const domain = new Domain(hub, options.name, memory, connect);
  joined = domain;
  try {
    await domain.start(options.timeoutMs ?? JOIN_MS);
    return domain;
  } catch (error) {
    joined = null;
    throw error;
  }
}
