/**
 * Credentials from a file of lines `"user" "secret"`, as PgBouncer's userlist.txt: the secret is a plain password, an md5
 * verifier (`md5...`) or a SCRAM verifier (`SCRAM-SHA-256$...`). A quote inside is doubled. Empty lines and lines that begin
 * with `;` or `#` are ignored. The file is read when the gateway starts.
 */

import { z } from 'zod';
import { CodedError, type CredentialsPlugin, type PluginModule, type Secret } from '../../core/contract/index.js';

const CODE = 'OUTLIVE_CONFIG_CREDENTIALS';

const Options = z.strictObject({ path: z.string().min(1) });

const ENTRY = /^\s*"((?:[^"]|"")+)"\s+"((?:[^"]|"")*)"\s*$/;
const MD5 = /^md5[0-9a-f]{32}$/;
const SCRAM = /^SCRAM-SHA-256\$[1-9]\d{0,9}:[A-Za-z0-9+/]+=*\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$/;

/**
 * Parses a credentials file.
 *
 * @param path the file's name, for messages
 * @returns the secrets by user
 * @throws CodedError OUTLIVE_CONFIG_CREDENTIALS naming the line, never what is in it
 */
export function parseCredentials(text: string, path: string): Map<string, Secret> {
  const secrets = new Map<string, Secret>();
  for (const [index, line] of text
    .replace(/^\uFEFF/, '')
    .split(/\r?\n/)
    .entries()) {
    if (/^\s*([;#].*)?$/.test(line)) continue;
    const wrong = (what: string) => new CodedError(CODE, 'config', `${path}, line ${index + 1}: ${what}`);
    const match = ENTRY.exec(line);
    if (match === null) throw wrong('expected "user" "secret", both in double quotes, and nothing else');
    const [user, secret] = match.slice(1).map((quoted) => quoted.replaceAll('""', '"'));
    if (secrets.has(user)) throw wrong('this user already has a line above');
    if (secret === '') throw wrong('the secret is empty; leave the line out for a user without one');
    if (secret.startsWith('SCRAM-SHA-256$') && !SCRAM.test(secret)) {
      throw wrong('the secret begins like a SCRAM verifier but is not a whole one; copy rolpassword as it is');
    }
    secrets.set(user, MD5.test(secret) || SCRAM.test(secret) ? { verifier: secret } : { password: secret });
  }
  return secrets;
}

const plugin: PluginModule = {
  name: 'credentials-file',
  contract: '1.0.0',
  kind: 'credentials',
  async create(options, context): Promise<CredentialsPlugin> {
    const parsed = Options.safeParse(options);
    if (!parsed.success) {
      const [issue] = parsed.error.issues;
      const where = issue.path.length === 0 ? 'options' : `options.${issue.path.join('.')}`;
      throw new CodedError(CODE, 'config', `credentials-file: ${where}: ${issue.message}`);
    }
    const { path } = parsed.data;
    let text: string;
    try {
      text = await context.readFile(path);
    } catch (cause) {
      throw new CodedError(CODE, 'config', `cannot read the credentials file ${path}: ${(cause as Error).message}`, {
        cause,
      });
    }
    const secrets = parseCredentials(text, path);
    context.log.info({ path, users: secrets.size }, 'credentials read');
    return { lookup: async (user) => secrets.get(user) ?? null };
  },
};

export default plugin;
