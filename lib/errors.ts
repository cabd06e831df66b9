// The error class of every room (floor 0, next to the addon's face).
//
// Three kinds of failure are never mixed: a programmer's error is an assertion (TypeError,
// RangeError
// or `assert`), an operating error is a PenstockError, and back-pressure is a return value.

/** What an operating error may carry beside its code and message. */
export interface ErrorDetail {
  /** What to do about it, one sentence. */
  hint?: string;
  cause?: unknown;
  /**
   * Exit code of the command line: 1 failed, 2 usage, 3 environment not ready, 4 verify mismatch.
   */
  exitCode?: number;
}

/** An operating error with a stable `code`, a `hint` that says what to do, and its cause. */
export class PenstockError extends Error {
  override readonly name = 'PenstockError';
  readonly code: string;
  readonly hint: string;
  readonly exitCode: number;

  constructor(code: string, message: string, detail: ErrorDetail = {}) {
    super(message, detail.cause === undefined ? undefined : { cause: detail.cause });
    this.code = code;
    this.hint = detail.hint ?? '';
    this.exitCode = detail.exitCode ?? 1;
  }

  /** The `error` object of CONTRACTS' JSON. */
  toJSON(): { code: string; message: string; hint: string; cause: string } {
    return { code: this.code, message: this.message, hint: this.hint, cause: describe(this.cause) };
  }
}

function describe(cause: unknown): string {
  if (cause === undefined || cause === null) return '';
  return cause instanceof Error ? cause.message : String(cause);
}

/** The errno name of a failed system call, or '' for anything else. */
export function errnoCode(error: unknown): string {
  if (error instanceof Error && 'syscall' in error && 'code' in error) return String(error.code);
  return '';
}
