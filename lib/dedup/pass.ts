// A pass over a pool (trimming, cleaning): one at a time, which all who ask meanwhile join. Any of
// them may end it.

export class Pass<T> {
  private running: Promise<T> | null = null;
  private stop = new AbortController();

  /** Begins one, or joins the one that is under way. */
  join(signal: AbortSignal | undefined, begin: (stop: AbortSignal) => Promise<T>): Promise<T> {
    if (this.running === null) {
      this.stop = new AbortController();
      this.running = begin(this.stop.signal).finally(() => (this.running = null));
    }
    const { running, stop } = this;
    const end = (): void => stop.abort();
    if (signal?.aborted === true) end();
    signal?.addEventListener('abort', end);
    return running.finally(() => signal?.removeEventListener('abort', end));
  }

  /** Resolves when none is under way; what came of it is told to who asked. */
  async settle(): Promise<void> {
    await this.running?.catch(() => undefined);
  }
}
