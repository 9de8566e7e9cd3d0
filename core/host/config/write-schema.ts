/**
 * Writes the JSON Schema of the configuration to the files named on the command line:
 * `node dist/core/host/config/write-schema.js outlive.schema.json dist/outlive.schema.json`.
 */
import { writeFileSync } from 'node:fs';
import { configJsonSchema } from './schema.js';

const text = `${JSON.stringify(configJsonSchema(), null, 2)}\n`;
for (const file of process.argv.slice(2)) writeFileSync(file, text);
