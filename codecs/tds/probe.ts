/** What a server is right now, and what its sessions do. */

import { type Activity, type Exchange, ProtocolViolation, type ServerFacts } from '../../core/contract/index.js';
import { askBatch, type Speech, textOf } from './ask.js';
import { DEFAULT_PACKET_SIZE } from './packet.js';
import { TDS_7_4 } from './version.js';

/** How the gateway's own connections speak. */
export const OWN: Speech = { dialect: TDS_7_4, packetSize: DEFAULT_PACKET_SIZE };

/**
 * The monitor's database stands for all of them: they change their role together, in one availability group. The family of a database
 * is the same on all replicas, and nowhere else.
 */
const FACTS = `SELECT CAST(DATABASEPROPERTYEX(DB_NAME(), 'Updateability') AS nvarchar(60)),
  CAST(family_guid AS nvarchar(36)),
  CAST(recovery_fork_guid AS nvarchar(36)),
  CONVERT(nvarchar(30), (SELECT sqlserver_start_time FROM sys.dm_os_sys_info), 121),
  CAST(SERVERPROPERTY('ServerName') AS nvarchar(128))
FROM sys.database_recovery_status WHERE database_id = DB_ID()`;

/** What {@link ServerFacts.history} is. */
export interface History {
  readonly fork: string | null;
  /** Its name, which no other one has. */
  readonly server: string | null;
}

/**
 * Learns what the server is, over a connection of the gateway's own. SQL Server has no number that grows with each promotion: `timeline`
 * is 0, and of two servers that take writes the one that serves goes on serving. That it was promoted once more shows in its
 * recovery fork, without which somebody who was fenced and came back could not be told from who is lost now.
 *
 * @throws ProtocolViolation when the server answers with an error (it names the number) or not at all
 */
export function* probe(): Exchange<ServerFacts> {
  const { rows, errors } = yield* askBatch(FACTS, OWN);
  if (errors.length > 0)
    throw new ProtocolViolation(`the server refused to be probed (error ${errors[0].number})`, 'server');
  const [row] = rows;
  if (row === undefined || row.length !== 5)
    throw new ProtocolViolation('the server did not answer the probe', 'server');
  const [updateability, family, fork, started, server] = row.map(textOf);
  const writable = updateability === 'READ_WRITE';
  return {
    role: writable ? 'primary' : 'standby',
    writable,
    system: family ?? '',
    timeline: 0,
    instance: writable ? `${started} ${fork}` : (started ?? ''),
    position: -1n,
    lagBytes: null,
    history: { fork, server } satisfies History,
  };
}

const text = (name: string): string => `N'${name.replaceAll("'", "''")}'`;

/**
 * The number of a session, and the condition by which its row is found: SQL Server gives the number of one that is gone to whoever comes next, perhaps
 * somebody whom the gateway has nothing to do with. What a server does not tell of a client makes no difference. Null for what no login made.
 */
function sessionOf(backendId: string): { readonly spid: number; readonly condition: string } | null {
  if (!backendId.startsWith('[')) return null;
  const [spid, processId, host, program] = JSON.parse(backendId) as [number, number, string, string];
  if (!Number.isInteger(spid) || spid < 1) return null;
  const condition =
    `session_id = ${spid} AND ISNULL(host_process_id, 0) IN (0, ${processId}) AND ` +
    `ISNULL(host_name, N'') IN (N'', ${text(host)}) AND ISNULL(program_name, N'') IN (N'', ${text(program)})`;
  return { spid, condition };
}

/** Pauses before the looks whether a session that was ended is gone, as WAITFOR has them. */
const PAUSES = ['00:00:00', '00:00:00.005', '00:00:00.02', ...new Array<string>(20).fill('00:00:00.025')];

/** Ends a session and waits, for half a second at most, until it is gone. */
export function* terminate(backendId: string): Exchange<boolean> {
  const session = sessionOf(backendId);
  if (session === null) return false;
  const { spid, condition } = session;
  // What is gone already is an error (6106), and so is a session that may not be ended: the look tells.
  yield* askBatch(`IF EXISTS (SELECT 1 FROM sys.dm_exec_sessions WHERE ${condition}) KILL ${spid}`, OWN);
  for (const pause of PAUSES) {
    const look = `WAITFOR DELAY '${pause}'; SELECT session_id FROM sys.dm_exec_sessions WHERE ${condition}`;
    const { rows, errors } = yield* askBatch(look, OWN);
    if (errors.length > 0) return false;
    if (rows.length === 0) return true;
  }
  return false;
}

/** What a session does. */
export function* activity(backendId: string): Exchange<Activity | null> {
  const session = sessionOf(backendId);
  if (session === null) return null;
  const { rows, errors } = yield* askBatch(`SELECT status FROM sys.dm_exec_sessions WHERE ${session.condition}`, OWN);
  if (errors.length > 0) throw new ProtocolViolation(`the server refused to tell of its sessions`, 'server');
  if (rows.length === 0) return 'gone';
  return textOf(rows[0][0])?.trim() === 'sleeping' ? 'waiting' : 'working';
}
