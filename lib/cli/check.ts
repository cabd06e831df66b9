// One line of `penstock doctor`, and the facts that checks read beside files.

export type CheckStatus = 'ok' | 'warn' | 'fail';

export interface Check {
  readonly name: string;
  readonly status: CheckStatus;
  /** What was found, for people. */
  readonly detail: string;
  /** What to do about it: a command or one sentence; '' when nothing is to be done. */
  readonly fix: string;
}

/** What is not read from a file; gathered once, so that checks are functions of their arguments. */
export interface Facts {
  readonly nodeVersion: string;
  /** lib/uring's probe; `hint` says what to do when it is not available. */
  readonly uring: {
    readonly available: boolean;
    readonly reason: string;
    readonly hint: string;
    readonly detail: string;
  };
  /** '' when the addon loaded, else why not. */
  readonly addonError: string;
  /** Bytes free for this user where temporary files go. */
  readonly tmpFolder: string;
  readonly tmpFreeBytes: number;
}

export function ok(name: string, detail: string): Check {
  return { name, status: 'ok', detail, fix: '' };
}

/** Works, with something less; `fix` says how to have it. */
export function warn(name: string, detail: string, fix: string): Check {
  return { name, status: 'warn', detail, fix };
}

/** Does not work until `fix` is done. */
export function fail(name: string, detail: string, fix: string): Check {
  return { name, status: 'fail', detail, fix };
}
