// A hook of Node's module loader: 'vitest' is suite.ts (see there).

type Resolved = { url: string; shortCircuit?: boolean };

export async function resolve(
  specifier: string,
  context: unknown,
  next: (specifier: string, context: unknown) => Promise<Resolved>,
): Promise<Resolved> {
  if (specifier !== 'vitest') return next(specifier, context);
  return { url: new URL('./suite.js', import.meta.url).href, shortCircuit: true };
}
