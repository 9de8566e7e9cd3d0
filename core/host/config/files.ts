import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { CodedError } from '../../contract/errors.js';

/** Reads files for plugins: relative paths start from the directory of the configuration, as everywhere in it. */
export function fileReader(baseDir: string): (path: string) => Promise<string> {
  return async (path) => {
    const file = resolve(baseDir, path);
    try {
      return await readFile(file, 'utf8');
    } catch (error) {
      const message = `cannot read ${file} (${(error as NodeJS.ErrnoException).code}); name a readable file`;
      throw new CodedError('OUTLIVE_CONFIG_UNREADABLE', 'config', message, { cause: error });
    }
  };
}
