// A unix socket as lines of text: the monitor and the ports of a guest.

import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { poll, type TetheredProcess } from './tether.js';

const CONNECT_LIMIT_MS = 20_000;

export class LineSocket {
  private readonly socket: Socket;
  /** Resolves once no more lines come. */
  readonly ended: Promise<void>;

  private constructor(socket: Socket, onLine: (line: string) => void) {
    this.socket = socket;
    // A guest that goes resets its sockets: that is an end like any other.
    socket.on('error', () => undefined);
    let rest = '';
    socket.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop()!;
      for (const line of lines) onLine(line.trimEnd());
    });
    this.ended = new Promise((resolve) => socket.on('close', () => resolve()));
  }

  /** Connects to a socket that `owner` is about to open. */
  static async connect(
    path: string,
    owner: TetheredProcess,
    onLine: (line: string) => void,
  ): Promise<LineSocket> {
    const attempt = async (): Promise<Socket | undefined> => {
      if (owner.hasEnded) throw new Error('QEMU has ended');
      const socket = connect(path);
      try {
        await once(socket, 'connect');
        return socket;
      } catch {
        socket.destroy();
        return undefined;
      }
    };
    const late = () => new Error(`QEMU opened no ${path}`);
    return new LineSocket(await poll(attempt, CONNECT_LIMIT_MS, late), onLine);
  }

  send(line: string): void {
    this.socket.write(`${line}\n`);
  }

  close(): void {
    this.socket.destroy();
  }
}
