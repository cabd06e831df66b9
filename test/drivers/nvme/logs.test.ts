// Log pages, events and features: golden pages, and pages that lie.

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  allFeatures,
  decodeFeature,
  featureDataBytes,
  featureName,
  grantedQueues,
} from '../../../lib/drivers/nvme/features.js';
import * as logs from '../../../lib/drivers/nvme/log-pages.js';
import { pageOf } from '../../support/nvme-pages.js';

const anyPage = (bytes: number): fc.Arbitrary<Uint8Array> =>
  fc.uint8Array({ minLength: bytes, maxLength: bytes });

describe('the smart log', () => {
  it('is read by the offsets of the standard', () => {
    const log = logs.parseSmartLog(
      pageOf(512, [
        [0, 1, 0x09],
        [1, 2, 323],
        [3, 1, 100],
        [5, 1, 3],
        [32, 8, 5n],
        [40, 8, 1n],
        [176, 8, 7n],
        [192, 4, 60],
        [200, 2, 300],
        [228, 4, 9],
      ]),
    );
    expect(log).toMatchObject({
      critical_warning: 9,
      temperature: 323,
      avail_spare: 100,
      percent_used: 3,
      data_units_read: 2n ** 64n + 5n,
      num_err_log_entries: 7n,
      warning_temp_time: 60,
      temperature_sensor_1: 300,
      thm_temp2_total_time: 9,
    });
    expect(logs.criticalWarnings(log)).toEqual([
      'the spare is below its threshold',
      'the media are read-only',
    ]);
  });
});

describe('the error log', () => {
  it('has whole entries with their status', () => {
    const entries = logs.parseErrorLog(
      pageOf(130, [
        [0, 8, 3n],
        [8, 2, 1],
        [10, 2, 0x12],
        [12, 2, (0x4080 << 1) | 1],
        [16, 8, 99n],
        [24, 4, 1],
      ]),
    );
    expect(entries).toHaveLength(2);
    expect(entries[0]).toMatchObject({ error_count: 3n, status_field: 0x4080, phase_tag: 1 });
    expect(logs.errorEntryText(entries[0]!)).toBe(
      'LBA_RANGE (0x080, do not retry): the blocks lie outside the namespace ' +
        '(queue 1, command 0x12, namespace 1, block 99)',
    );
  });
});

describe('other log pages', () => {
  it('firmware slots', () => {
    const page = pageOf(512, [
      [0, 1, 0x21],
      [8, 8, '1.0'],
      [16, 8, '2.0'],
    ]);
    expect(logs.parseFirmwareLog(page)).toEqual({
      activeSlot: 1,
      nextSlot: 2,
      revisions: ['1.0', '2.0', '', '', '', '', ''],
    });
    expect(logs.paddedRevision(page, 1)).toBe('1.0     ');
  });

  it('changed namespaces', () => {
    expect(
      logs.parseChangedNamespaces(
        pageOf(4096, [
          [0, 4, 2],
          [4, 4, 2],
          [8, 4, 1],
        ]),
      ),
    ).toEqual([2, 1]);
    expect(logs.parseChangedNamespaces(pageOf(4096, [[0, 4, 0xffffffff]]))).toBeNull();
  });

  it('commands and their effects', () => {
    const page = pageOf(4096, [
      [6 * 4, 4, 1],
      [1024 + 4, 4, 0x3],
      [1024 + 8, 4, 0x2],
    ]);
    const { admin, io } = logs.parseCommandEffects(page);
    expect([...admin]).toEqual([[6, 1]]);
    expect([...io]).toEqual([[1, 3]]);
  });

  it('self-tests', () => {
    const unused = Array.from({ length: 20 }, (_, index) => [4 + index * 28, 1, 0x0f] as const);
    const page = pageOf(564, [[0, 1, 2], [1, 1, 50], ...unused, [4, 1, 0x17], [4 + 16, 8, 77n]]);
    const log = logs.parseSelfTestLog(page);
    expect(log).toMatchObject({ current: 2, percentDone: 50 });
    expect(log.results).toHaveLength(1);
    expect(log.results[0]).toMatchObject({ status: 0x17, lba: 77n });
  });

  it('are read whatever stands in them', () => {
    fc.assert(
      fc.property(anyPage(4096), (page) => {
        logs.parseSmartLog(page);
        logs.parseErrorLog(page).map(logs.errorEntryText);
        logs.parseFirmwareLog(page);
        logs.parseChangedNamespaces(page);
        logs.parseCommandEffects(page);
        logs.parseSelfTestLog(page);
      }),
      { numRuns: 30 },
    );
    expect(() => logs.parseSmartLog(new Uint8Array(511 - 280))).toThrow(RangeError);
  });
});

describe('an asynchronous event', () => {
  it.each([
    [0x020001, { type: 'health', info: 'reliability is compromised', logPageName: 'smart' }],
    [0x010300, { type: 'error', info: 'persistent internal error', logPage: 1 }],
    [0x040002, { type: 'notice', info: 'namespace attributes changed', logPage: 4 }],
    [0x810106, { type: 'io', info: 'sanitize completed', logPageName: 'sanitize status' }],
    [0xc04207, { type: 'vendor', info: 'event 42h', logPageName: 'log page c0h' }],
    [0x000005, { type: 'type 5', info: 'event 00h', logPage: 0, logPageName: '' }],
  ])('%i decodes', (dw0, wanted) => {
    expect(logs.decodeAsyncEvent(dw0)).toMatchObject(wanted);
  });
});

describe('features', () => {
  it('have names and parts', () => {
    expect(featureName(7)).toBe('number of queues');
    expect(decodeFeature(7, 0x0003_0001)).toEqual({ nsq: 1, ncq: 3 });
    expect(grantedQueues(0x0003_0001)).toEqual({ sqs: 2, cqs: 4 });
    expect(decodeFeature(6, 1)).toEqual({ wce: 1 });
    expect(decodeFeature(4, 0x0010_0143)).toEqual({ tmpth: 0x143, tmpsel: 0, thsel: 1 });
    expect(decodeFeature(1, 0xff000007)).toMatchObject({ ab: 7, hpw: 255 });
    expect([featureName(0xc0), decodeFeature(0xc0, 1)]).toEqual(['feature c0h', {}]);
    expect([featureDataBytes(0x0e), featureDataBytes(7)]).toEqual([8, 0]);
    expect(allFeatures().length).toBeGreaterThan(30);
  });
});
