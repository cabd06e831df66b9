// Samples of progress as rates. A sample holds counts since the measured part began; an interval is
// what happened between two samples.

import type { Sample } from './types.js';

export interface Interval {
  /** End of the interval. */
  timeMs: number;
  readIops: number;
  writeIops: number;
  readBwBytes: number;
  writeBwBytes: number;
}

/** Rates between neighbouring samples; equal times and fallen counts are left out. */
export function intervals(series: readonly Sample[]): Interval[] {
  const parts: Interval[] = [];
  let last: Sample = { timeMs: 0, readIos: 0, writeIos: 0, readBytes: 0, writeBytes: 0 };
  for (const sample of series) {
    const seconds = (sample.timeMs - last.timeMs) / 1000;
    // Counting begins anew after the ramp.
    const restarted = sample.readIos < last.readIos || sample.writeIos < last.writeIos;
    if (seconds > 0 && !restarted) {
      parts.push({
        timeMs: sample.timeMs,
        readIops: (sample.readIos - last.readIos) / seconds,
        writeIops: (sample.writeIos - last.writeIos) / seconds,
        readBwBytes: (sample.readBytes - last.readBytes) / seconds,
        writeBwBytes: (sample.writeBytes - last.writeBytes) / seconds,
      });
    }
    last = sample;
  }
  return parts;
}
