import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

// Names that start alike and are no error codes: environment variables and parts of the configuration.
const NOT_CODES = /^OUTLIVE_(DEBUG|SERVER|HOST|PORT|KEEPER)$/;

/** Whole codes in string literals (and at the start of a printed text); a bare prefix is none. */
function codesIn(text: string): string[] {
  return [...text.matchAll(/['"`\s|(]((?:OUTLIVE)(?:_[A-Z0-9]+)+)(?=['"`\s|:,.)])/g)].map((match) => match[1]);
}

function codesOfSources(): Set<string> {
  const codes = new Set<string>();
  for (const folder of ['core', 'codecs', 'plugins']) {
    for (const entry of readdirSync(join(ROOT, folder), { recursive: true, withFileTypes: true })) {
      if (!entry.isFile() || !entry.name.endsWith('.ts')) continue;
      for (const code of codesIn(readFileSync(join(entry.parentPath, entry.name), 'utf8'))) codes.add(code);
    }
  }
  return new Set([...codes].filter((code) => !NOT_CODES.test(code)).sort());
}

describe('ERRORS.md', () => {
  it('lists every code of the sources, and no other', () => {
    const listed = new Set(
      codesIn(readFileSync(join(ROOT, 'ERRORS.md'), 'utf8')).filter((code) => !NOT_CODES.test(code)),
    );
    const used = codesOfSources();
    expect({
      missing: [...used].filter((code) => !listed.has(code)),
      unknown: [...listed].filter((code) => !used.has(code)).sort(),
    }).toEqual({ missing: [], unknown: [] });
  });

  it('would be found wrong', () => {
    expect(codesIn(`throw new E('OUTLIVE_A_B', x); // OUTLIVE_C: text\n| \`OUTLIVE_D2\` | 'OUTLIVE_...'`)).toEqual([
      'OUTLIVE_A_B',
      'OUTLIVE_C',
      'OUTLIVE_D2',
    ]);
  });
});
