// What tests of served devices share: a hub in this process, and servers as processes of their own,
// which are the built command.

import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Hub } from '../../lib/idc/index.js';
import { MAIN } from '../cli/command.js';

export interface Served {
  readonly name: string;
  /** Where it is opened. */
  readonly uri: string;
  readonly child: ChildProcess;
  /** Sends a signal and waits for the end; gives the exit code. */
  end(signal?: NodeJS.Signals): Promise<number | null>;
}

export class DeviceWorld {
  readonly folder = mkdtempSync(join(tmpdir(), 'penstock-device-'));
  readonly socket = join(this.folder, 'hub');
  private hub: Hub | null = Hub.listen(this.socket);
  private readonly running = new Set<Served>();
  private names = 0;

  /** Serves a device in a process of its own, under a name of its own unless one is given. */
  async serve(device: string, args: readonly string[] = [], given = ''): Promise<Served> {
    if (!existsSync(MAIN)) throw new Error('dist is not built: npm run build');
    const name = given === '' ? `disk${this.names++}` : given;
    const words = ['driver', 'serve', device, '--name', name, '--hub', this.socket, ...args];
    const child = spawn(process.execPath, [MAIN, ...words], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, PENSTOCK_QUIET: '1' },
    });
    const exit = new Promise<number | null>((resolve) => child.once('exit', resolve));
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    await new Promise<void>((resolve, reject) => {
      child.stdout.once('data', () => resolve());
      void exit.then((code) => reject(new Error(`serving ${device}: exit ${code}: ${stderr}`)));
    });
    const served: Served = {
      name,
      uri: `idc:${this.socket}/${name}`,
      child,
      end: async (signal = 'SIGTERM') => {
        child.kill(signal);
        const code = await exit;
        this.running.delete(served);
        return code;
      },
    };
    this.running.add(served);
    return served;
  }

  /** Ends the hub, or starts another at the same place. */
  closeHub(): void {
    this.hub?.close();
    this.hub = null;
  }

  openHub(): void {
    this.hub ??= Hub.listen(this.socket);
  }

  async close(): Promise<void> {
    for (const served of [...this.running]) await served.end('SIGKILL');
    this.closeHub();
    rmSync(this.folder, { recursive: true });
  }
}
