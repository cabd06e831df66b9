// A kernel as far as binding goes, over a made-up tree: what is written to driver_override, unbind,
// drivers_probe and bind moves devices between drivers, as drivers/pci/pci-driver.c and
// drivers/base/bus.c do. Each change can be made to fail.

import {
  existsSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { type Machine, hostMachine } from '../../lib/pci/index.js';
import { folderWith } from '../cli/tree.js';

export interface MadeUpDevice {
  readonly address: string;
  /** The driver that the kernel would choose; it has the device at first, except where said. */
  readonly natural: string;
  readonly bound?: boolean;
  readonly override?: string;
  /** None where left out. */
  readonly group?: string;
  readonly classCode?: string;
  readonly files?: Readonly<Record<string, string>>;
}

const DRIVERS = '/sys/bus/pci/drivers';

export class MadeUpKernel {
  readonly folder: string;
  readonly machine: Machine;
  /** Changes so far: what a crash can come before. */
  changes: string[] = [];
  /** What every change asks first. */
  beforeChange: (index: number) => void = () => {};
  /** Modules that can be loaded and are not. */
  readonly modules = new Set<string>();
  /** Paths that opening exclusively or for writing finds busy. */
  readonly busy = new Set<string>();
  /** Drivers that refuse every device. */
  readonly refusing = new Set<string>();
  addresses = new Map<string, string[]>();
  private readonly natural = new Map<string, string>();
  private readonly owners = new Map<string, number>();

  constructor(devices: readonly MadeUpDevice[], files: Readonly<Record<string, string>> = {}) {
    const drivers = ['vfio-pci', 'pci-stub', ...devices.map((device) => device.natural)];
    this.folder = folderWith({
      [`${DRIVERS}/`]: '/',
      ...Object.assign({}, ...drivers.map(driverFiles)),
      ...Object.assign({}, ...devices.map(deviceFiles)),
      ...files,
    });
    this.machine = this.makeMachine();
    for (const { address, natural, bound } of devices) {
      this.natural.set(address, natural);
      if (bound !== false && natural !== '') this.attach(address, natural);
    }
  }

  driverOf(address: string): string {
    const link = this.at(`/sys/bus/pci/devices/${address}/driver`);
    return existsSync(link) ? basename(readlinkSync(link)) : '';
  }

  overrideOf(address: string): string {
    return this.read(`/sys/bus/pci/devices/${address}/driver_override`);
  }

  read(path: string): string {
    return readFileSync(this.at(path), 'utf8').trim();
  }

  put(path: string, text: string): void {
    mkdirSync(join(this.at(path), '..'), { recursive: true });
    writeFileSync(this.at(path), `${text}\n`);
  }

  has(path: string): boolean {
    return existsSync(this.at(path));
  }

  unplug(address: string): void {
    rmSync(this.at(`/sys/bus/pci/devices/${address}`), { recursive: true });
  }

  /** A driver that was built in or loaded by somebody else. */
  addDriver(name: string): void {
    for (const [path, text] of Object.entries(driverFiles(name))) this.put(path, text);
  }

  removeDriver(name: string): void {
    rmSync(this.at(`${DRIVERS}/${name}`), { recursive: true });
  }

  /** A process with these paths open. */
  addProcess(pid: number, command: string, ...paths: string[]): void {
    this.put(`/proc/${pid}/comm`, command.split(' ')[0] ?? '');
    this.put(`/proc/${pid}/cmdline`, command.replaceAll(' ', '\0'));
    mkdirSync(this.at(`/proc/${pid}/fd`), { recursive: true });
    for (const [fd, path] of paths.entries()) {
      if (!this.has(path)) this.put(path, '');
      symlinkSync(`../../..${path}`, this.at(`/proc/${pid}/fd/${fd + 3}`));
    }
  }

  private at(path: string): string {
    return join(this.folder, path);
  }

  private makeMachine(): Machine {
    const host = hostMachine(this.folder);
    const change = (what: string): void => {
      this.beforeChange(this.changes.length);
      this.changes.push(what);
    };
    return {
      ...host,
      write: (path, text) => {
        change(`write ${path}`);
        this.write(path, text.trim());
      },
      save: (path, text) => {
        change(`save ${path}`);
        host.save(path, text);
      },
      remove: (path) => {
        change(`remove ${path}`);
        host.remove(path);
      },
      loadModule: (name) => {
        change(`load ${name}`);
        this.addDriver(name);
      },
      canLoadModule: (name) => this.modules.has(name),
      chown: (path, uid) => {
        change(`chown ${path}`);
        this.owners.set(path, uid);
      },
      ownerOf: (path) => (this.has(path) ? (this.owners.get(path) ?? 0) : -1),
      tryOpen: (path) => (this.busy.has(path) ? 'EBUSY' : ''),
      networkAddresses: () => this.addresses,
      now: () => new Date('2026-01-02T03:04:05Z'),
      sleep: () => Promise.resolve(),
    };
  }

  private write(path: string, text: string): void {
    const [, ofDevice, attribute] =
      /^\/sys\/bus\/pci\/devices\/([^/]+)\/(driver_override|driver\/unbind)$/.exec(path) ?? [];
    if (attribute === 'driver_override') return this.put(path, text || '(null)');
    if (ofDevice !== undefined) return this.detach(ofDevice, text);
    if (path === '/sys/bus/pci/drivers_probe') return this.probe(text);
    const driver = /^\/sys\/bus\/pci\/drivers\/([^/]+)\/bind$/.exec(path)?.[1];
    if (driver === undefined) throw systemError('ENOENT', path);
    if (!this.has(path) || this.match(text) !== driver) throw systemError('ENODEV', path);
    if (this.driverOf(text) !== '') throw systemError('EBUSY', path);
    this.attach(text, driver);
  }

  private probe(address: string): void {
    const driver = this.match(address);
    if (this.driverOf(address) !== '' || driver === '') return;
    this.attach(address, driver);
  }

  /** With an override only that driver; '' when none takes it. */
  private match(address: string): string {
    const override = this.overrideOf(address);
    const driver = override === '(null)' ? (this.natural.get(address) ?? '') : override;
    return this.has(`${DRIVERS}/${driver}/bind`) && !this.refusing.has(driver) ? driver : '';
  }

  private attach(address: string, driver: string): void {
    symlinkSync(`../../..${DRIVERS.slice(4)}/${driver}`, this.deviceLink(address));
    const group = this.groupOf(address);
    if (driver === 'vfio-pci' && group !== '') this.put(`/dev/vfio/${group}`, '');
  }

  private detach(address: string, text: string): void {
    if (text !== address) throw systemError('ENODEV', address);
    rmSync(this.deviceLink(address));
    const group = this.groupOf(address);
    if (group === '') return;
    const members = this.machine.root.list(`/sys/kernel/iommu_groups/${group}/devices`);
    if (members.some((member) => this.driverOf(member) === 'vfio-pci')) return;
    rmSync(this.at(`/dev/vfio/${group}`), { force: true });
    this.owners.delete(`/dev/vfio/${group}`);
  }

  private deviceLink(address: string): string {
    return this.at(`/sys/devices/pci0000:00/${address}/driver`);
  }

  private groupOf(address: string): string {
    return this.machine.root.linkName(`/sys/bus/pci/devices/${address}/iommu_group`);
  }
}

function driverFiles(name: string): Record<string, string> {
  return { [`${DRIVERS}/${name}/bind`]: '', [`${DRIVERS}/${name}/unbind`]: '' };
}

function deviceFiles(device: MadeUpDevice): Record<string, string> {
  const { address, group } = device;
  const folder = `/sys/devices/pci0000:00/${address}`;
  const groupFolder = `/sys/kernel/iommu_groups/${group}`;
  const own = Object.entries(device.files ?? {}).map(([path, text]) => [`${folder}/${path}`, text]);
  return {
    [`${folder}/class`]: device.classCode ?? '0x010802',
    [`${folder}/vendor`]: '0x1b36',
    [`${folder}/device`]: '0x0010',
    [`${folder}/driver_override`]: device.override ?? '(null)',
    [`/sys/bus/pci/devices/${address}`]: `->../../../devices/pci0000:00/${address}`,
    ...(group === undefined
      ? {}
      : {
          [`${folder}/iommu_group`]: `->../../../kernel/iommu_groups/${group}`,
          [`${groupFolder}/devices/${address}`]: `->../../../../devices/pci0000:00/${address}`,
        }),
    ...Object.fromEntries(own),
  };
}

/** As fs throws it. */
export function systemError(code: string, path: string): Error {
  return Object.assign(new Error(`${code}: made up, write '${path}'`), { code, syscall: 'write' });
}
