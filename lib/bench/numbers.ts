// Numbers as fio prints them: at most so many significant characters, then k, M, G or Ki, Mi, Gi.
//
// A number that fits into the width is printed whole (`IOPS=4938`), a longer one is divided until
// it fits and gets as many decimals as the width leaves (`60.1k`, `235MiB/s`).

const DECIMAL_PREFIXES = ['', 'k', 'M', 'G', 'T', 'P'] as const;
const BINARY_PREFIXES = ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi'] as const;

/** fio's width of rates and sizes. */
const RATE_CHARACTERS = 4;
/** fio's width of the latencies' min and max. */
const LATENCY_CHARACTERS = 6;

function scaled(value: number, characters: number, base: number, prefixes: readonly string[]) {
  let exact = Math.max(0, value);
  let prefix = 0;
  while (String(Math.trunc(exact)).length > characters && prefix < prefixes.length - 1) {
    exact /= base;
    prefix++;
  }
  if (prefix === 0) return String(Math.trunc(exact));
  const decimals = Math.max(0, characters - String(Math.trunc(exact)).length - 1);
  let text = exact.toFixed(decimals);
  // 99.96 rounds up to 100.0, one character too many.
  if (text.length > characters && decimals > 0) text = exact.toFixed(decimals - 1);
  return text + (prefixes[prefix] ?? '');
}

/** '831', '60.1k', '1043k'. */
export function scaleCount(count: number): string {
  return scaled(count, RATE_CHARACTERS, 1000, DECIMAL_PREFIXES);
}

/** A latency's min or max: '112437k', '1009.3k', '70'. */
export function scaleLatency(value: number): string {
  return scaled(value, LATENCY_CHARACTERS, 1000, DECIMAL_PREFIXES);
}

/** '251MiB', '4938KiB'. */
export function scaleBytes(bytes: number): string {
  return `${scaled(bytes, RATE_CHARACTERS, 1024, BINARY_PREFIXES)}B`;
}

/** '264MB': powers of 1000, which fio prints in brackets. */
export function scaleBytesDecimal(bytes: number): string {
  return `${scaled(bytes, RATE_CHARACTERS, 1000, DECIMAL_PREFIXES)}B`;
}

/** '70 ns', '1.04 µs', '12.3 ms', '2.5 s': three significant digits. */
export function formatNanoseconds(ns: number): string {
  const units = ['ns', 'µs', 'ms', 's'];
  let value = ns;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  const decimals = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${Number(value.toFixed(decimals))} ${units[unit] ?? ''}`;
}

/** The middle value, the mean of the two middle ones for an even count, 0 for none. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? 0;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? 0) + upper) / 2;
}
