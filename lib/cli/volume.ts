// `penstock volume …`: makes and lists volumes of a pool, and moves images in and out.

import type { Command } from 'commander';
import type { Pool } from '../dedup/index.js';
import { formatSize, parseSize } from '../units.js';
import { Exit, printJson, printOutcome, printText, table, wantsJson } from './output.js';
import { closing, OPENS_POOL, settled, withPool } from './pool-session.js';
import type { Finish } from './program.js';
import { exportTarget, exportVolume, type Exported } from './volume-export.js';
import { importImage, openImage, SNAPSHOT, type Imported } from './volume-import.js';
import { BLOCK_BYTES, formatRate } from './volume-pieces.js';

/** A volume as it stands in the JSON of `volume list`. */
interface VolumeFacts {
  readonly name: string;
  readonly size_bytes: number;
  /** What is not a hole; blocks that are shared count in each volume. */
  readonly mapped_bytes: number;
  /** Promised to it. */
  readonly reserved_bytes: number;
  /** ISO 8601, UTC. */
  readonly made: string;
  readonly kind: 'volume' | 'snapshot';
  /** What it is a snapshot or clone of; null: of nothing, or of what is deleted. */
  readonly of: string | null;
}

type VolumeRecord = Pool['volumes'][number];

export function configure(command: Command, finish: Finish): void {
  subcommand(command, 'create', 'make a volume of a size, all zeros')
    .argument('<name>', 'its name in the pool')
    .argument('<size>', 'a multiple of 4 KiB: 16MiB, 1TiB; may be more than the pool has')
    .option('--reserve <size>', 'so much of the pool is promised to it')
    .action(async (uri: string, name: string, size: string, _: object, self: Command) => {
      const bytes = parseSize(size);
      const { reserve: text = '0' } = self.opts<{ reserve?: string }>();
      const reserve = parseSize(text);
      await withPool(uri, (pool) => pool.createVolume(name, bytes, { reserve }));
      const made = { name, size_bytes: bytes, reserved_bytes: reserve };
      if (wantsJson(self)) printJson('volume-create', made);
      else printText(`volume ${name} made: ${formatSize(bytes)}, at dedup:${uri}#${name}`);
      finish(Exit.OK);
    });
  subcommand(command, 'list', 'the volumes of a pool')
    .addHelpText('after', OPENS_POOL)
    .action(async (uri: string, _: object, self: Command) => {
      const volumes = await withPool(uri, async (pool) => listOf(pool));
      if (wantsJson(self)) printJson('volume-list', { volumes });
      else printText(formatList(volumes));
      finish(Exit.OK);
    });
  for (const kind of ['snapshot', 'clone'] as const) {
    const what = kind === 'snapshot' ? 'read only' : 'a volume of its own';
    subcommand(command, kind, `the state of a volume under another name: ${what}`)
      .argument('<name>', 'the volume')
      .argument('<copy>', `name of the ${kind}`)
      .action(async (uri: string, name: string, copy: string, _: object, self: Command) => {
        await withPool(uri, (pool) => pool.copyVolume(name, copy, kind));
        if (wantsJson(self)) printJson(`volume-${kind}`, { name: copy, of: name });
        else printText(`${kind} ${copy} of ${name} made, at dedup:${uri}#${copy}`);
        finish(Exit.OK);
      });
  }
  subcommand(command, 'resize', 'give a volume another size; what it gains are zeros')
    .argument('<name>', 'the volume')
    .argument('<size>', 'a multiple of 4 KiB: 16MiB, 1TiB')
    .option('--shrink', 'less than it has: what is beyond the new end is lost')
    .action(async (uri: string, name: string, size: string, _: object, self: Command) => {
      const { shrink = false } = self.opts<{ shrink?: boolean }>();
      const bytes = parseSize(size);
      await withPool(uri, async (pool, signal) => {
        await pool.resizeVolume(name, bytes, { shrink });
        await settled(pool, signal, `volume ${name} has ${formatSize(bytes)}`);
      });
      if (wantsJson(self)) printJson('volume-resize', { name, size_bytes: bytes });
      else printText(`volume ${name} has ${formatSize(bytes)}`);
      finish(Exit.OK);
    });
  subcommand(command, 'delete', 'delete a volume or snapshot; what others share stays')
    .argument('<name>', 'the volume')
    .action(async (uri: string, name: string, _: object, self: Command) => {
      await withPool(uri, async (pool, signal) => {
        await pool.deleteVolume(name);
        await settled(pool, signal, `volume ${name} is deleted`);
      });
      if (wantsJson(self)) printJson('volume-delete', { name });
      else printText(`volume ${name} deleted`);
      finish(Exit.OK);
    });
  subcommand(command, 'import', 'write an image to a volume, made where it is not there')
    .argument('<name>', 'the volume')
    .argument('<image>', 'a file with the bytes of a disk')
    .option('--verify', 'read back and compare; exit code 4 when anything differs')
    .action(async (uri: string, name: string, path: string, _: object, self: Command) => {
      const { verify = false } = self.opts<{ verify?: boolean }>();
      const image = await openImage(path);
      const { imported, failure } = await closing(image, () =>
        withPool(uri, (pool, signal) => importImage(pool, name, image, { verify, signal })),
      );
      const text = formatImported(imported, image.bytes);
      finish(printOutcome(wantsJson(self), 'volume-import', imported, text, failure));
    });
  subcommand(command, 'export', 'write a volume to a file; zeros are left out of it')
    .argument('<name>', 'the volume')
    .argument('<file>', 'the file that is to be made')
    .option('--force', 'replace the file when there is one')
    .addHelpText('after', OPENS_POOL)
    .action(async (uri: string, name: string, file: string, _: object, self: Command) => {
      const { force = false } = self.opts<{ force?: boolean }>();
      const target = exportTarget(file, uri, force);
      const { exported, failure } = await withPool(uri, (pool, signal) =>
        exportVolume(pool, name, target, force, signal),
      );
      const text = formatExported(exported, failure === null);
      finish(printOutcome(wantsJson(self), 'volume-export', exported, text, failure));
    });
}

function subcommand(command: Command, name: string, summary: string): Command {
  return command
    .command(name)
    .description(summary)
    .argument('<uri>', 'the device of the pool')
    .option('--json', 'print JSON alone on stdout');
}

function listOf(pool: Pool): VolumeFacts[] {
  const byIndex = new Map(pool.volumes.map((volume) => [volume.index, volume]));
  return pool.volumes.map((volume) => ({
    name: volume.name,
    kind: volume.state === SNAPSHOT ? 'snapshot' : 'volume',
    of: originOf(volume, byIndex)?.name ?? null,
    size_bytes: volume.bytes,
    mapped_bytes: volume.mapped * BLOCK_BYTES,
    reserved_bytes: volume.reserved * BLOCK_BYTES,
    made: new Date(volume.madeMs).toISOString(),
  }));
}

/** A volume that was made after the copy has only taken the number of what that was a copy of. */
function originOf(
  { origin, serial }: VolumeRecord,
  byIndex: ReadonlyMap<number, VolumeRecord>,
): VolumeRecord | null {
  const from = origin === 0 ? undefined : byIndex.get(origin - 1);
  return from !== undefined && from.serial < serial ? from : null;
}

function formatList(volumes: readonly VolumeFacts[]): string {
  if (volumes.length === 0) return 'No volumes.';
  const rows = volumes.map((volume) => [
    volume.name,
    volume.kind,
    volume.of ?? '-',
    formatSize(volume.size_bytes),
    formatSize(volume.mapped_bytes),
    volume.reserved_bytes === 0 ? '-' : formatSize(volume.reserved_bytes),
    volume.made,
  ]);
  return table(['VOLUME', 'KIND', 'OF', 'SIZE', 'MAPPED', 'RESERVED', 'MADE'], rows);
}

function formatImported(done: Imported, imageBytes: number): string {
  const { bytes, duration_s: seconds } = done;
  const what = bytes < imageBytes ? `the beginning of ${done.image}` : done.image;
  return (
    `${what} is in ${done.volume}: ${formatSize(bytes)} in ${seconds.toFixed(2)} s ` +
    `(${formatRate(bytes, seconds)}); ${formatSize(done.stored_bytes)} stored, ` +
    `${formatSize(done.shared_bytes)} shared, ${formatSize(done.zero_bytes)} zeros: ` +
    `${done.saved_percent.toFixed(1)} % saved${done.verified ? '; verified' : ''}`
  );
}

function formatExported(done: Exported, isWhole: boolean): string {
  const { bytes, duration_s: seconds } = done;
  const what = isWhole ? 'is in' : 'was begun, and is not in';
  return (
    `${done.volume} ${what} ${done.file}: ${formatSize(bytes)} in ${seconds.toFixed(2)} s ` +
    `(${formatRate(bytes, seconds)}); ${formatSize(done.written_bytes)} written, ` +
    `the rest is zeros`
  );
}
