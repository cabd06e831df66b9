// A pair of named pipes as lines of text, synchronously: QEMU's `pipe` character devices.
//
// A read blocks the thread until the other side answers or ends; whoever uses this sees to it that
// the other side ends in bounded time (TetheredProcess does).

import { execFileSync } from 'node:child_process';
import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs';

export class PipeLines {
  private readonly toDevice: number;
  private readonly fromDevice: number;
  private readonly chunk = Buffer.alloc(65_536);
  private text = '';
  private closed = false;

  /** Makes the pipes of `path`, before QEMU is started. */
  static make(path: string): void {
    execFileSync('mkfifo', [`${path}.in`, `${path}.out`], { stdio: 'pipe', timeout: 10_000 });
  }

  /** Opens them; undefined while QEMU has not. */
  static open(path: string): PipeLines | undefined {
    let probe: number;
    try {
      probe = openSync(`${path}.in`, constants.O_WRONLY | constants.O_NONBLOCK);
    } catch {
      return undefined; // nobody reads it yet
    }
    try {
      return new PipeLines(path);
    } finally {
      closeSync(probe);
    }
  }

  /** QEMU opens both ends of both, one right after the other, so that neither call waits. */
  private constructor(path: string) {
    this.toDevice = openSync(`${path}.in`, 'w');
    this.fromDevice = openSync(`${path}.out`, 'r');
  }

  send(line: string): void {
    if (this.closed) throw new Error('QEMU has ended');
    let rest = Buffer.from(`${line}\n`, 'latin1');
    while (rest.length > 0) rest = rest.subarray(writeSync(this.toDevice, rest));
  }

  /** The next line; throws once the other side has ended. */
  read(): string {
    for (;;) {
      const end = this.text.indexOf('\n');
      if (end >= 0) {
        const line = this.text.slice(0, end).trimEnd();
        this.text = this.text.slice(end + 1);
        return line;
      }
      const bytes = readSync(this.fromDevice, this.chunk);
      if (bytes === 0) throw new Error('QEMU has ended');
      this.text += this.chunk.toString('latin1', 0, bytes);
    }
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    closeSync(this.toDevice);
    closeSync(this.fromDevice);
  }
}
