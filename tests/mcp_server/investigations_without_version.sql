BEGIN TRANSACTION;
CREATE TABLE calls (
    id INTEGER PRIMARY KEY AUTOINCREMENT, investigation TEXT NOT NULL REFERENCES investigations(id), tool TEXT NOT NULL, arguments TEXT NOT NULL,
    result TEXT NOT NULL, outcome TEXT NOT NULL, seconds REAL NOT NULL, budget TEXT NOT NULL, created REAL NOT NULL);
INSERT INTO "calls" VALUES(1,'a1b2c3d4e5f6','ask_models','{}','{}','completed',1.5,'',1700000001.0);
CREATE TABLE findings (
    scope TEXT NOT NULL, verdict TEXT NOT NULL, statement TEXT NOT NULL, likelihood REAL NOT NULL, evidence TEXT NOT NULL, created REAL NOT NULL);
INSERT INTO "findings" VALUES('a1b2c3d4e5f6','difference','Cakes.',0.8,'[]',1700000003.0);
CREATE TABLE hypotheses (
    number INTEGER NOT NULL, scope TEXT NOT NULL, statement TEXT NOT NULL, likelihood REAL NOT NULL, status TEXT NOT NULL, evidence TEXT NOT NULL,
    reasoning TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL, PRIMARY KEY (scope, number));
INSERT INTO "hypotheses" VALUES(1,'a1b2c3d4e5f6','About cakes.',0.4,'active','[]','',1700000002.0,1700000002.0);
CREATE TABLE investigations (
    id TEXT PRIMARY KEY, label TEXT NOT NULL UNIQUE, token_sha256 TEXT NOT NULL, pair TEXT NOT NULL, tools TEXT NOT NULL,
    interactions INTEGER NOT NULL CHECK (interactions >= 0), tool_calls INTEGER NOT NULL CHECK (tool_calls >= 0),
    note TEXT NOT NULL DEFAULT '', created REAL NOT NULL, closed REAL);
INSERT INTO "investigations" VALUES('a1b2c3d4e5f6','pair-7f3a','5e109a0db5693373953b822903914e31d630a739b9cda38e8a04ac581a893a4f','cake_bake','["method"]',50,200,'older',1700000000.0,NULL);
CREATE TABLE reservations (
    id TEXT PRIMARY KEY, investigation TEXT NOT NULL REFERENCES investigations(id), budget TEXT NOT NULL, amount INTEGER NOT NULL CHECK (amount >= 0),
    state TEXT NOT NULL CHECK (state IN ('reserved', 'committed', 'refunded')), owner TEXT NOT NULL, what TEXT NOT NULL, created REAL NOT NULL);
INSERT INTO "reservations" VALUES('r1','a1b2c3d4e5f6','interactions',7,'committed','o1','ask_models',1700000001.0);
CREATE TABLE seen_runs (
    investigation TEXT NOT NULL REFERENCES investigations(id), run TEXT NOT NULL, PRIMARY KEY (investigation, run));
INSERT INTO "seen_runs" VALUES('a1b2c3d4e5f6','kl-1f3a9c');
CREATE INDEX reservations_of ON reservations (investigation, budget);
CREATE INDEX calls_of ON calls (investigation);
CREATE UNIQUE INDEX one_finding ON findings (scope) WHERE scope <> 'operator';
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('calls',1);
COMMIT;
