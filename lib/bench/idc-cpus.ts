// Two processors for two threads that spin: not one for both, as a scheduler does it for a while,
// and not the two halves of one core where there are others.

import { native } from '../native.js';
import { fileRoot, type Root } from '../pci/index.js';

/**
 * The first processor that this thread may use, and the best other; null when there is one only.
 */
export function twoCpus(
  allowed = native.cpuAffinity(),
  root: Pick<Root, 'read'> = fileRoot(),
): [number, number] | null {
  const [first, ...others] = allowed;
  if (first === undefined || others.length === 0) return null;
  const path = `/sys/devices/system/cpu/cpu${first}/topology/thread_siblings_list`;
  const siblings = cpuList(root.read(path));
  const apart = others.find((cpu) => !siblings.includes(cpu));
  return [first, apart ?? others[0]!];
}

/** `0-2,8` → [0, 1, 2, 8]. */
export function cpuList(text: string): number[] {
  return text.split(',').flatMap((part) => {
    const [, from = '', to = from] = /^\s*(\d+)(?:-(\d+))?\s*$/.exec(part) ?? [];
    if (from === '') return [];
    return Array.from({ length: Number(to) - Number(from) + 1 }, (_, i) => Number(from) + i);
  });
}
