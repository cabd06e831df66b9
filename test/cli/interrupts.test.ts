import { afterEach, describe, expect, it, vi } from 'vitest';
import { catchInterrupts } from '../../lib/cli/interrupts.js';

describe('catchInterrupts', () => {
  afterEach(() => vi.restoreAllMocks());

  it.each(['SIGINT', 'SIGTERM'] as const)('%s aborts once, then ends the process', (name) => {
    const exit = vi.spyOn(process, 'exit').mockImplementation(() => undefined as never);
    const before = process.listenerCount(name);
    const interrupts = catchInterrupts();
    expect(interrupts.signal.aborted).toBe(false);
    process.emit(name);
    expect(interrupts.signal.aborted).toBe(true);
    expect(exit).not.toHaveBeenCalled();
    process.emit(name);
    expect(exit).toHaveBeenCalledWith(130);
    interrupts.release();
    expect(process.listenerCount(name)).toBe(before);
  });
});
