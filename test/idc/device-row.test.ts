// A row whose channel cannot be opened: the queue fails with a code, and nothing of it is left.

import { readdirSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { Cpl, Op, Status, type DeviceInfo } from '../../lib/hpdi/index.js';
import { DeviceQueue } from '../../lib/idc/device-queue.js';
import { OwnedRow } from '../../lib/idc/device-row.js';
import { QueueTable, Row, RowState } from '../../lib/idc/device-table.js';
import { Liveness } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';

/** No process has so many descriptors. */
const NO_FD = 2 ** 30;
const INFO = {
  ...{ blockSize: 512, blocks: 8, maxTransferBlocks: 8, addressAlign: 1 },
  operations: 1 << Op.FLUSH,
} as DeviceInfo;

const liveness = new Liveness();
let table: QueueTable;
let eventFd = -1;

afterEach(() => {
  if (eventFd >= 0) native.fileClose(eventFd);
  eventFd = -1;
});

/** A table with one row, claimed, whose channel has a descriptor that is none. */
function claimed(): void {
  table = QueueTable.create(1);
  eventFd = native.eventfdCreate();
  table.set(0, Row.eventFd, eventFd);
  const place = { address: 4096, size: 16, serial: 1 };
  table.publish(0, RowState.ready, {
    places: { own: place, peer: place },
    slot: 1,
    wakeFd: NO_FD,
  });
  expect(table.claim(liveness.index, liveness.serial)).toBe(0);
}

const descriptors = (): number => readdirSync('/proc/self/fd').length;

function queue(): DeviceQueue {
  return new DeviceQueue({
    table,
    row: 0,
    depth: 4,
    info: INFO,
    memory: { slot: 2, granules: new Uint8Array(32768) },
    settle: null,
    onCut: () => {},
    isHomeAlive: () => true,
    reconnects: true,
    onClose: () => {},
  });
}

describe('a row', () => {
  it('whose channel cannot be opened is not tried for ever', () => {
    claimed();
    const before = descriptors();
    expect(() => queue()).toThrow(expect.objectContaining({ code: 'DEVICE_GONE' }));
    expect(table.get(0, Row.claim)).toBe(0);
    expect(descriptors()).toBe(before);
  });

  it('that has changed meanwhile is no failure', () => {
    claimed();
    const row = new OwnedRow(table, 0);
    const view = row.read();
    table.publish(0, RowState.waiting, null);
    expect(row.openChannel(view)).toBe(null);
    row.close(false);
  });

  it('is given back where its event cannot be had', () => {
    claimed();
    table.set(0, Row.eventFd, NO_FD);
    expect(() => queue()).toThrow(expect.objectContaining({ code: 'DEVICE_GONE' }));
    expect(table.get(0, Row.claim)).toBe(0);
  });

  it('that cannot be gone on with completes what waits there with DEVICE_GONE', async () => {
    claimed();
    table.publish(0, RowState.waiting, null);
    const made = queue();
    const flush = new Uint32Array([Op.FLUSH, 7, 0, 0, 0, 0, 0, 0]);
    expect(made.submit(flush, 0, 1)).toBe(1);
    const cq = new Uint32Array(4 * Cpl.words);
    expect(made.poll(cq, 4)).toBe(0);
    table.publish(0, RowState.ready, null);
    expect(made.poll(cq, 4)).toBe(1);
    expect([cq[0], cq[Cpl.status]]).toEqual([7, Status.DEVICE_GONE]);
    await made.close();
    expect(table.get(0, Row.claim)).toBe(0);
  });
});
