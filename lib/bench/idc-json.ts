// The result of `bench idc` for programs ('penstock.bench-idc/1') and for people.

import type { Histogram } from './histogram.js';
import type { IdcResult, PayloadResult } from './idc.js';
import { formatNanoseconds, scaleBytes, scaleCount } from './numbers.js';
import type { HostFacts } from './types.js';

export interface RttJson {
  p50: number;
  p99: number;
  max: number;
  mean: number;
  count: number;
}

export interface IdcPayloadJson {
  bytes: number;
  untouched: { rtt_ns: RttJson };
  read: { rtt_ns: RttJson };
  loan: { rtt_ns: RttJson };
  socket: { rtt_ns: RttJson };
  process_send: { rtt_ns: RttJson };
  postmessage: { rtt_ns: RttJson };
}

export interface IdcJson {
  rtt_ns: RttJson;
  descriptors_per_s: number;
  /** Median round trip of 64 bytes to a worker and back. */
  postmessage_rtt_ns: number;
  by_payload: IdcPayloadJson[];
  wake_us: Record<'event_loop' | 'park', { p50: number; p99: number; max: number; count: number }>;
  /** Of one processor, both processes together. */
  idle_cpu_percent: number;
  stream: { batch: number; ring: number; windows: number; best_per_s: number; disturbed: number };
  idle: { seconds: number; asker_cpu_percent: number; answerer_cpu_percent: number };
  /** Largest median of an untouched payload over the smallest; clones over a read one, by bytes. */
  ratio: {
    untouched_max_to_min: number;
    postmessage_to_read: Record<string, number>;
    process_send_to_read: Record<string, number>;
  };
  cpus: readonly number[];
  host: Omit<HostFacts, 'memoryBytes'> & { memory_bytes: number };
}

export function idcJson(result: IdcResult, host: HostFacts): IdcJson {
  const { memoryBytes, ...facts } = host;
  const { rate, idle, wake, payloads } = result;
  return {
    rtt_ns: rttJson(result.rtt),
    descriptors_per_s: Math.round(rate.median),
    postmessage_rtt_ns: result.postMessage.percentile(50),
    by_payload: payloads.map((payload) => ({
      bytes: payload.bytes,
      untouched: { rtt_ns: rttJson(payload.untouched) },
      read: { rtt_ns: rttJson(payload.read) },
      loan: { rtt_ns: rttJson(payload.loan) },
      socket: { rtt_ns: rttJson(payload.socket) },
      process_send: { rtt_ns: rttJson(payload.processSend) },
      postmessage: { rtt_ns: rttJson(payload.postMessage) },
    })),
    wake_us: { event_loop: wakeJson(wake.eventLoop), park: wakeJson(wake.park) },
    idle_cpu_percent: rounded((idle.cpu + idle.childCpu) * 100),
    stream: {
      batch: rate.batch,
      ring: rate.size,
      windows: rate.windows,
      best_per_s: Math.round(rate.best),
      disturbed: rounded(rate.disturbed),
    },
    idle: {
      seconds: rounded(idle.seconds),
      asker_cpu_percent: rounded(idle.cpu * 100),
      answerer_cpu_percent: rounded(idle.childCpu * 100),
    },
    ratio: {
      untouched_max_to_min: rounded(flatness(payloads)),
      postmessage_to_read: toRead(payloads, 'postMessage'),
      process_send_to_read: toRead(payloads, 'processSend'),
    },
    cpus: result.cpus ?? [],
    host: { ...facts, memory_bytes: memoryBytes },
  };
}

/** Lines for people. */
export function idcText(result: IdcResult, host: HostFacts): string {
  const { rtt, rate, wake, idle, payloads, cpus } = result;
  const percent = (part: number): string => `${(part * 100).toFixed(2)} %`;
  const wakeWords = (histogram: Histogram): string =>
    `p50=${time(histogram, 50)}, p99=${time(histogram, 99)}, max=${time(histogram, 100)}, ` +
    `wakes=${histogram.count}`;
  const place = cpus === null ? 'one processor' : `processors ${cpus.join(' and ')}`;
  return [
    `penstock-${host.penstock}: two processes on ${place} (${host.cpu})`,
    `  round trip   : p50=${time(rtt, 50)}, p99=${time(rtt, 99)}, max=${time(rtt, 100)}, ` +
      `trips=${scaleCount(rtt.count)}`,
    `  one way      : ${scaleCount(rate.median)} records/s (best ${scaleCount(rate.best)}), ` +
      `batch=${rate.batch}, ring=${rate.size}, disturbed=${percent(rate.disturbed)}`,
    `  wake, loop   : ${wakeWords(wake.eventLoop)}`,
    `  wake, park   : ${wakeWords(wake.park)}`,
    `  idle         : ${percent(idle.cpu)} + ${percent(idle.childCpu)} of a processor, ` +
      `${idle.seconds.toFixed(1)} s`,
    '',
    ...payloadLines(payloads),
    '',
    `untouched: largest to smallest median ${flatness(payloads).toFixed(3)}`,
    '',
  ].join('\n');
}

const COLUMNS: readonly [string, keyof Omit<PayloadResult, 'bytes'>][] = [
  ['untouched', 'untouched'],
  ['read', 'read'],
  ['loan', 'loan'],
  ['socket', 'socket'],
  ['process.send', 'processSend'],
  ['postMessage', 'postMessage'],
];
const WIDTH = 19;

function payloadLines(payloads: readonly PayloadResult[]): string[] {
  const heading = COLUMNS.map(([name]) => name.padStart(WIDTH)).join('');
  return [
    `${'p50 / p99'.padEnd(9)}${heading}   over read`,
    ...payloads.map((payload) => {
      const cells = COLUMNS.map(([, key]) => {
        const histogram = payload[key];
        return `${time(histogram, 50)} / ${time(histogram, 99)}`.padStart(WIDTH);
      });
      const { processSend, postMessage, read } = payload;
      const times = [processSend, postMessage].map((each) => `${ratio(each, read).toFixed(1)} x`);
      return `${scaleBytes(payload.bytes).padEnd(9)}${cells.join('')}   ${times.join(', ')}`;
    }),
  ];
}

function rttJson(histogram: Histogram): RttJson {
  return {
    p50: histogram.percentile(50),
    p99: histogram.percentile(99),
    max: histogram.percentile(100),
    mean: Math.round(histogram.mean()),
    count: histogram.count,
  };
}

function wakeJson(histogram: Histogram): IdcJson['wake_us']['park'] {
  const at = (percent: number): number => rounded(histogram.percentile(percent) / 1000);
  return { p50: at(50), p99: at(99), max: at(100), count: histogram.count };
}

function flatness(payloads: readonly PayloadResult[]): number {
  const medians = payloads.map(({ untouched }) => untouched.percentile(50)).filter((ns) => ns > 0);
  return medians.length === 0 ? 0 : Math.max(...medians) / Math.min(...medians);
}

function toRead(
  payloads: readonly PayloadResult[],
  peer: 'postMessage' | 'processSend',
): Record<string, number> {
  return Object.fromEntries(
    payloads.map((payload) => [String(payload.bytes), rounded(ratio(payload[peer], payload.read))]),
  );
}

function ratio(over: Histogram, under: Histogram): number {
  const least = under.percentile(50);
  return least === 0 ? 0 : over.percentile(50) / least;
}

function rounded(value: number): number {
  return Math.round(value * 1000) / 1000;
}

function time(histogram: Histogram, percent: number): string {
  return formatNanoseconds(histogram.percentile(percent));
}
