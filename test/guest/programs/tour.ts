// Shows what a guest offers: looks at the devices, binds an NVMe controller to vfio-pci, gives it
// back, reads it with nvme-cli, and answers the test.

import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { native } from '../../../lib/native.js';
import { bindDriver, hear, loadModules, pciDevices, report, say, until } from '../inside.js';

const NVME_CLASS = 0x010802;

async function main(): Promise<void> {
  report('node', process.version);
  report('arguments', process.argv.slice(2));
  report('variable', process.env['TOUR']);
  report('processors', native.cpuAffinity());
  report('vfio before', existsSync('/dev/vfio/vfio'));
  const controller = pciDevices().find((device) => device.class === NVME_CLASS);
  if (controller === undefined) throw new Error('there is no NVMe controller');
  report('controller', controller);

  loadModules('vfio-pci', 'nvme');
  report('vfio after', existsSync('/dev/vfio/vfio'));
  if (controller.group !== undefined) {
    bindDriver(controller.address, 'vfio-pci');
    report('groups', readdirSync('/dev/vfio').sort());
  }
  bindDriver(controller.address, 'nvme');
  const disk = await until(
    () => readdirSync('/dev').find((name) => /^nvme\dn1$/.test(name)),
    'disk',
  );
  writeFileSync(`/dev/${disk}`, 'written in the guest'.padEnd(4096, '.'));
  const listed = execFileSync('nvme', ['id-ctrl', `/dev/${disk}`, '-o', 'json'], {
    encoding: 'utf8',
  });
  report('serial', (JSON.parse(listed) as { sn: string }).sn.trim());
  report('sectors', Number(readFileSync(`/sys/block/${disk}/size`, 'utf8')));

  say({ question: 'what now?' });
  console.log(`the test says ${await hear()}`);
  console.error('x'.repeat(100_000));
  process.exitCode = 7;
}

await main();
